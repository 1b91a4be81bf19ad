// How a problem is cut, in numbers that the host sets and the kernels read; and the maps from there
// to memory. Plain arithmetic: the same code on both sides, tested on the host.
//
// The batch rows of each direction are dealt out to `groups` that never meet: row l of a group is
// row group + l * groups of the batch, which keeps groups alike when a packed batch runs out of
// rows. The hidden units of a group are split over `members`, one thread block each, `units` to a
// member; its warps split those further, 16 * MT each, and the k of the product among warps_k.
#pragma once

#include <cstdint>

#include "../api/rnn.h"
#include "device.h"

namespace rnnfast::cuda {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
// Pairs of units that a thread finishes at a time, at most: what is kept for them in registers.
constexpr int kPairs = 4;
// Of the weights, each lane holds this many 32-byte parts in registers: 128 of them, 128 KiB a
// thread block. What is more lies in its shared memory.
constexpr int kRegisterParts = 16;
constexpr int kPartBytes = 1024; // of a warp: 16 units by one block of k

struct Geometry {
  int H;
  int directions, groups, members;
  int tiles;            // MT: 16 units each, of a warp
  int units;            // of a member: warps_m * tiles * 16
  int warps_m, warps_k; // warps_m * warps_k <= kWarps
  int blocks;           // of k: 64 bytes each
  int warp_blocks;      // of k, of one warp
  int chunk;            // batch rows at a time
  int rows;             // of a group, at most
  int padded_rows;      // with those that matrix instructions read in vain

  // 16-byte words from one row of the state to the next: in device memory; and in shared memory,
  // an odd number of 64 bytes, so that 8 lanes, of 2 rows, find theirs in different banks.
  RNNFAST_BOTH int global_stride() const { return 4 * blocks; }
  RNNFAST_BOTH int shared_stride() const { return 4 * (blocks | 1); }
  // Sums from one row of partial sums to the next: 4 away from a multiple of 16, for the same end.
  RNNFAST_BOTH int sum_stride() const { return units + 4; }

  RNNFAST_BOTH int local_rows(int rows_of_batch, int group) const {
    return (rows_of_batch + groups - 1 - group) / groups;
  }
  RNNFAST_BOTH int64_t batch_row(int row, int group) const { return group + int64_t(row) * groups; }

  // In 16-byte words: one direction's packed weights; one group's two states.
  RNNFAST_BOTH int64_t unit_tiles() const { return int64_t(members) * units / 16; }
  RNNFAST_BOTH int64_t weight_words() const { return unit_tiles() * blocks * (kPartBytes / 16); }
  RNNFAST_BOTH int64_t state_words() const { return int64_t(padded_rows) * global_stride(); }
};

// Rows that are reached when `rows` are multiplied, `columns` or 4 * columns at a time.
RNNFAST_BOTH int padded(int rows, int columns) {
  const int rest = rows % (4 * columns), wide = rows - rest;
  if (columns == 1) {
    return rows;
  }
  return rest > 2 * columns ? wide + 4 * columns : wide + (rest + columns - 1) / columns * columns;
}

// One computed step: its rows of the batch, and where they begin.
struct Step {
  int start; // row of a packed batch, or time step
  int rows;  // 0 before the first step and after the last
};

struct Steps {
  int T, B;
  const int64_t* starts;
  bool from_end;

  RNNFAST_BOTH Step at(int i) const {
    if (i < 0 || i >= T) {
      return {0, 0};
    }
    const int t = from_end ? T - 1 - i : i;
    return starts == nullptr ? Step{t, B} : Step{int(starts[t]), int(starts[t + 1] - starts[t])};
  }
  // In elements from the beginning of a sequence.
  template <class T_>
  RNNFAST_BOTH int64_t offset(const Sequence<T_>& s, const Step& step, int64_t row) const {
    return starts == nullptr ? int64_t(step.start) * s.step + row * s.row
                             : (row + step.start) * s.row;
  }
};

} // namespace rnnfast::cuda
