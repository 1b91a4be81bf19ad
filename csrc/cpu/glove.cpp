// An epoch of GloVe: rounds of blocks, divided over the threads. The update of one entry is in
// vector/glove-inl.h.
#include "../api/glove.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"
#include "parallel.h"

namespace rnnfast {
namespace {

// The vectors of an entry are fetched into the cache this many entries before they are used.
constexpr int64_t kAhead = 4;

void check(const Glove& c) {
  const int64_t P = c.P;
  bool whole = c.starts[0] == 0 && c.starts[P * P] == c.N;
  for (int64_t block = 0; block < P * P; ++block) {
    whole = whole && c.starts[block] <= c.starts[block + 1];
  }
  if (!whole) {
    throw std::invalid_argument("starts must rise from 0 to the number of entries, " +
                                std::to_string(c.N) + " without falling in between");
  }
  std::vector<bool> seen(P);
  for (int64_t round = 0; round < P; ++round) {
    const int64_t shift = c.shifts[round];
    if (shift < 0 || shift >= P || seen[shift]) {
      throw std::invalid_argument("shifts must have each of 0 to " + std::to_string(P - 1) +
                                  " once, got " + std::to_string(shift) + " in round " +
                                  std::to_string(round));
    }
    seen[shift] = true;
  }
  for (int64_t p = 0; p < P; ++p) {
    for (int64_t q = 0; q < P; ++q) {
      for (int64_t n = c.starts[p * P + q]; n < c.starts[p * P + q + 1]; ++n) {
        const int64_t i = c.row[n], j = c.column[n];
        if (i < 0 || i >= c.V || i % P != p || j < 0 || j >= c.V || j % P != q) {
          throw std::out_of_range("row and column must be words in [0, " + std::to_string(c.V) +
                                  ") of block (" + std::to_string(p) + ", " + std::to_string(q) +
                                  "), got " + std::to_string(i) + " and " + std::to_string(j) +
                                  " for entry " + std::to_string(n));
        }
      }
    }
  }
}

double run_block(const Glove& c, int64_t begin, int64_t end) {
  const auto update = current_isa().kernels->glove_update;
  const int64_t pitch = 2 * (c.D + 1);
  double sum = 0;
  for (int64_t n = begin; n < end; ++n) {
    if (n + kAhead < end) {
      const float *const word = c.words + c.row[n + kAhead] * pitch, *const context =
                                                                         c.contexts +
                                                                         c.column[n + kAhead] *
                                                                             pitch;
      for (int64_t d = 0; d < pitch; d += 16) {
        __builtin_prefetch(word + d, 1);
        __builtin_prefetch(context + d, 1);
      }
    }
    sum += update(c.words + c.row[n] * pitch, c.contexts + c.column[n] * pitch, c.D, c.log_x[n],
                  c.weight[n], c.lr);
  }
  return sum;
}

} // namespace

double glove_epoch(const Glove& c) {
  check(c);
  const int64_t P = c.P;
  // The cost is summed for each block of words, and then over these in a fixed order, so that it
  // does not depend on the threads.
  std::vector<double> sums(P);
  std::vector<std::atomic<int64_t>> taken(P);
  Barrier barrier;
  parallel(int(std::min<int64_t>(c.threads, P)), [&](int, int threads) {
    for (int64_t round = 0; round < P; ++round) {
      // Blocks differ in size, so a thread that is free takes the next one.
      for (int64_t p; (p = taken[round].fetch_add(1, std::memory_order_relaxed)) < P;) {
        const int64_t* const start = c.starts + p * P + (p + c.shifts[round]) % P;
        sums[p] += run_block(c, start[0], start[1]);
      }
      barrier.wait(threads);
    }
  });
  double total = 0;
  for (double sum : sums) {
    total += sum;
  }
  return total;
}

} // namespace rnnfast
