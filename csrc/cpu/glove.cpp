// Rounds of blocks; the update itself is in glove-inl.h.
#include "../api/glove.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <vector>

#include "isa.h"
#include "parallel.h"

namespace rnnfast {
namespace {

constexpr int64_t kAhead = 4; // entries from one whose vectors are being fetched to the one at work

void check(const Glove& c) {
  const int64_t P = c.P;
  bool whole = c.starts[0] == 0 && c.starts[P * P] == c.N;
  for (int64_t block = 0; block < P * P; ++block) {
    whole = whole && c.starts[block] <= c.starts[block + 1];
  }
  if (!whole) {
    throw std::invalid_argument("starts must rise from 0 to the number of entries");
  }
  std::vector<bool> seen(P);
  for (int64_t round = 0; round < P; ++round) {
    const int64_t shift = c.shifts[round];
    if (shift < 0 || shift >= P || seen[shift]) {
      throw std::invalid_argument("shifts must have each of 0 .. P - 1 once");
    }
    seen[shift] = true;
  }
  for (int64_t p = 0; p < P; ++p) {
    for (int64_t q = 0; q < P; ++q) {
      for (int64_t n = c.starts[p * P + q]; n < c.starts[p * P + q + 1]; ++n) {
        const int64_t i = c.row[n], j = c.column[n];
        if (i < 0 || i >= c.V || i % P != p || j < 0 || j >= c.V || j % P != q) {
          throw std::out_of_range("row and column must be words in [0, " + std::to_string(c.V) +
                                  ") of their block, got " + std::to_string(i) + " and " +
                                  std::to_string(j));
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
  std::vector<double> sums(P); // of the blocks of words: they are added up in one order
  std::vector<std::atomic<int64_t>> taken(P);
  Barrier barrier;
  parallel(int(std::min<int64_t>(c.threads, P)), [&](int, int threads) {
    for (int64_t round = 0; round < P; ++round) {
      // Blocks are of uneven size, so whoever is free takes the next.
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
