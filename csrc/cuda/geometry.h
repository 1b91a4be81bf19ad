// How a problem is cut, in numbers that the host sets and the kernels read; and the maps from there
// to memory. Plain arithmetic: the same code on both sides, tested on the host.
//
// The batch rows of each direction are dealt out to `groups` that never meet: row l of a group is
// row group + l * groups of the batch, which keeps groups alike when a packed batch runs out of
// rows. The hidden units of a group are split over `members`, one thread block each, `units` to a
// member.
#pragma once

#include <cstdint>

#include "../api/rnn.h"
#include "device.h"

namespace rnnfast::cuda {

constexpr int kWarps = 8, kThreads = 32 * kWarps; // of a block, at most

struct Geometry {
  int H;
  int directions, groups, members;
  int units;    // of a member
  int blocks;   // of k: 64 bytes each, of a row of W or of the state
  int rows;     // of a group, at most
  int threads;  // of a block
  bool by_rows; // W is packed row by row, for products by FMA; otherwise in tiles of 16 units

  // Only the step kernel uses the following sizes.
  int warps_m, warps_k; // warps_m * warps_k <= kWarps
  int warp_blocks;      // of k, of one warp
  int chunk;            // batch rows at a time
  int padded_rows;      // of a group, with those that matrix instructions read in vain

  RNNFAST_BOTH int local_rows(int rows_of_batch, int group) const {
    return (rows_of_batch + groups - 1 - group) / groups;
  }
  RNNFAST_BOTH int64_t batch_row(int row, int group) const { return group + int64_t(row) * groups; }

  // In 16-byte words: a row of the state in device memory; a member's and a direction's packed W.
  RNNFAST_BOTH int row_words() const { return 4 * blocks; }
  RNNFAST_BOTH int64_t member_words() const { return int64_t(units) * row_words(); }
  RNNFAST_BOTH int64_t weight_words() const { return members * member_words(); }
  // One of the two states of a group of the step kernel.
  RNNFAST_BOTH int64_t state_words() const { return int64_t(padded_rows) * row_words(); }
  // Sums from one row of partial sums of the step kernel to the next: 4 away from a multiple of 16,
  // so that lanes of different rows find theirs in different banks.
  RNNFAST_BOTH int sum_stride() const { return units + 4; }
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
