// The numbers that say how a problem is cut, and the maps from these numbers to memory. The host
// sets the numbers and the kernels read them. Both sides use the same code, which is tested on the
// host.
//
// The batch rows of each direction are dealt out to `groups`, which do not depend on one another.
// Row l of a group is row group + l * groups of the batch. So the groups have about the same number
// of rows in every step of a packed batch. The hidden units of a group are split over `members`.
// Each member is one thread block and has `units` of them.
#pragma once

#include <cstdint>

#include "../api/rnn.h"
#include "device.h"

namespace rnnfast::cuda {

constexpr int kWarps = 8, kThreads = 32 * kWarps; // at most in a block

struct Geometry {
  int H;
  int directions, groups, members;
  int units;    // of a member
  int blocks;   // of k: parts of 64 bytes of a row of W or of the state
  int rows;     // at most in a group
  int threads;  // of a block
  bool by_rows; // W is packed row by row, for products by FMA; otherwise in tiles of 16 units

  // Only the step kernel uses the following sizes.
  int warps_m, warps_k; // warps_m * warps_k <= kWarps
  int warp_blocks;      // blocks of k that one warp has
  int chunk;            // batch rows that are computed at a time
  int padded_rows;      // rows of a group, and the rows after them that matrix instructions read

  RNNFAST_BOTH int local_rows(int rows_of_batch, int group) const {
    return (rows_of_batch + groups - 1 - group) / groups;
  }
  RNNFAST_BOTH int64_t batch_row(int row, int group) const { return group + int64_t(row) * groups; }

  // Sizes in 16-byte words: a row of the state in device memory, and the packed W of a member and
  // of a direction.
  RNNFAST_BOTH int row_words() const { return 4 * blocks; }
  RNNFAST_BOTH int64_t member_words() const { return int64_t(units) * row_words(); }
  RNNFAST_BOTH int64_t weight_words() const { return members * member_words(); }
  // The size of one of the two states of a group of the step kernel, in 16-byte words.
  RNNFAST_BOTH int64_t state_words() const { return int64_t(padded_rows) * row_words(); }
  // The distance between two rows of partial sums of the step kernel, in sums. It is 4 more than a
  // multiple of 16, so that lanes of different rows use different banks.
  RNNFAST_BOTH int sum_stride() const { return units + 4; }
};

// Returns how many rows are read when `rows` are multiplied, `columns` or 4 * columns at a time.
RNNFAST_BOTH int padded(int rows, int columns) {
  const int rest = rows % (4 * columns), wide = rows - rest;
  if (columns == 1) {
    return rows;
  }
  return rest > 2 * columns ? wide + 4 * columns : wide + (rest + columns - 1) / columns * columns;
}

// One computed step: the number of its rows of the batch, and where they begin.
struct Step {
  int start; // the row of a packed batch, or the time step
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
  // Returns the position of a row in elements from the beginning of a sequence.
  template <class T_>
  RNNFAST_BOTH int64_t offset(const Sequence<T_>& s, const Step& step, int64_t row) const {
    return starts == nullptr ? int64_t(step.start) * s.step + row * s.row
                             : (row + step.start) * s.row;
  }
};

} // namespace rnnfast::cuda
