// How the work of a call is laid out: its buffers, and the share of each thread.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../api/rnn.h"
#include "isa.h"
#include "memory_pool.h"
#include "schedule.h"

namespace rnnfast {

// The number of multiply-adds that makes waking a thread worth its time. They take about 10
// microseconds.
constexpr double kThreadWork = 5e5;
// If there are fewer rows than this for each thread, several threads form a group. The members of a
// group compute the same rows and divide the columns.
constexpr int64_t kGroupRows = 4;
// A group has so few members that a step has at least this many multiply-adds for each of them.
// With less work the barrier that the members need at each step would cost more than they save.
constexpr double kMemberWork = 1 << 13;
// Parts of a stack run at the same time only if W_hh has at most this many bytes. A larger W_hh is
// better divided over all threads than held whole in the cache of each core.
constexpr int64_t kTogetherBytes = 1 << 19;

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Convert an element to the type of the sums.
inline float to_sum(float v) { return v; }
inline double to_sum(double v) { return v; }
inline float to_sum(bfloat16 v) {
  const uint32_t bits = uint32_t(v.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
inline float to_sum(float16 v) {
  const int exponent = v.bits >> 10 & 31, digits = v.bits & 1023;
  const float magnitude = exponent == 31  ? (digits == 0 ? INFINITY : NAN)
                          : exponent == 0 ? std::ldexp(float(digits), -24)
                                          : std::ldexp(float(1024 + digits), exponent - 25);
  return v.bits >> 15 != 0 ? -magnitude : magnitude;
}

// Convert a sum to an element of a left factor: bfloat16, or the type of the sum itself.
template <class O, class C> O from_sum(C v) {
  if constexpr (std::is_same_v<O, C>) {
    return v;
  } else {
    static_assert(std::is_same_v<O, bfloat16>);
    uint32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    return {uint16_t(std::isnan(v) ? bits >> 16 | 0x40 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
  }
}

// The nonlinearity of leaky units, for a single number.
template <class C> C apply(Nonlinearity f, C x) {
  switch (f) {
  case Nonlinearity::kTanh:
    return std::tanh(x);
  case Nonlinearity::kRelu:
    return x < C(0) ? C(0) : x; // NaN stays NaN
  case Nonlinearity::kSigmoid:
    return C(1) / (C(1) + std::exp(-x));
  case Nonlinearity::kSoftplus:
    return (x < C(0) ? C(0) : x) + std::log1p(std::exp(-std::fabs(x)));
  case Nonlinearity::kLinear:
    break;
  }
  return x;
}

// Work space. The thread that makes the call takes it from its pool and gives it back.
template <class T> struct GiveBack {
  size_t size;
  void operator()(T* p) const { MemoryPool::of_thread().give(p, size); }
};
template <class T> using Buffer = std::unique_ptr<T[], GiveBack<T>>;

// Return a buffer of at least `count` elements, which are not initialised. Throws std::bad_alloc.
template <class T> Buffer<T> allocate(int64_t count) {
  size_t size = std::max<size_t>(64, round_up(count * sizeof(T), 64));
  void* const data = MemoryPool::of_thread().take(size);
  return Buffer<T>(static_cast<T*>(data), GiveBack<T>{size});
}

// Return a copy of n elements in the type of the sums, with zeros up to `width`.
template <class S> Buffer<Sum<S>> widened(const S* from, int64_t n, int64_t width) {
  Buffer<Sum<S>> copy = allocate<Sum<S>>(width);
  for (int64_t i = 0; i < width; ++i) {
    copy[i] = i < n ? to_sum(from[i]) : Sum<S>(0);
  }
  return copy;
}

// The distance from row to row of a buffer with n columns, in elements. It is a whole number of
// vectors plus one cache line, so that with a power of two the rows do not all fall into the same
// cache set.
template <class T> int64_t row_stride(int64_t n) {
  return round_up(n, 64 / sizeof(T)) + 64 / sizeof(T);
}

// Return how many of at most `most` threads to use for `work` multiply-adds.
inline int threads_for(int most, double work) {
  return work < 2 * kThreadWork
             ? 1
             : static_cast<int>(std::min<double>(std::max(most, 1), work / kThreadWork));
}

// Sum the rows of the left factor of an OuterProducts, which gives the gradient of a bias:
//
//   out[m] (+)= sum over k of p[k, m]
//
// A few rows at a time are summed, then the sums of all rows of the call, because a single long sum
// would be less accurate.
template <class S, class O> void sum_columns(const OuterProducts<S, O>& o, Sum<S>* out) {
  constexpr int64_t kColumns = 64, kRows = 32;
  for (int64_t m0 = 0; m0 < o.M; m0 += kColumns) {
    const int64_t m1 = std::min(o.M, m0 + kColumns);
    Sum<S> total[kColumns] = {};
    for (int64_t k0 = 0; k0 < o.K; k0 += kRows) {
      Sum<S> sum[kColumns] = {};
      for (int64_t k = k0; k < std::min(o.K, k0 + kRows); ++k) {
        for (int64_t m = m0; m < m1; ++m) {
          sum[m - m0] += to_sum(o.p[k * o.p_stride + m]);
        }
      }
      for (int64_t m = m0; m < m1; ++m) {
        total[m - m0] += sum[m - m0];
      }
    }
    for (int64_t m = m0; m < m1; ++m) {
      out[m] = o.add ? out[m] + total[m - m0] : total[m - m0];
    }
  }
}

// Return how many parts of a stack to compute at the same time: both directions of a layer, or
// several layers, each a few steps behind the layer below. It is more than one only if there are
// too few rows for all threads and if a whole W_hh fits into the cache of each core.
template <class T>
int64_t at_once(const Shape& shape, int64_t gates, int64_t layers, int64_t directions) {
  const int64_t threads = std::max(shape.threads, 1);
  const int64_t groups = std::clamp<int64_t>(shape.B / kGroupRows, 1, threads);
  if (groups == threads || gates * shape.H * shape.H * int64_t(sizeof(T)) > kTogetherBytes) {
    return 1;
  }
  return directions > 1 ? directions : std::min(layers, threads / groups);
}

// The threads of a call form several teams that work at the same time. This is the place of one
// thread: its team, its number in that team, and the number of threads of that team.
struct Team {
  int index, thread, threads;

  // With fewer threads than teams there is nothing to divide: all threads do the work of one team
  // after the other, so that `thread` and `threads` keep their values.
  Team(int thread, int threads, int teams) : index(0), thread(thread), threads(threads) {
    if (threads >= teams) {
      while (begin(index + 1, threads, teams) <= thread) {
        ++index;
      }
      this->thread = thread - begin(index, threads, teams);
      this->threads = begin(index + 1, threads, teams) - begin(index, threads, teams);
    }
  }

private:
  static int begin(int team, int threads, int teams) {
    return static_cast<int>(int64_t(threads) * team / teams);
  }
};

// The share of one thread in the work of a recurrence: rows [r0, r1) and hidden columns [c0, c1),
// either of which may be empty. The threads of a group have the same rows; its members divide the
// columns.
struct Share {
  int group, member, members;
  int64_t r0, r1, c0, c1;

  // The share of `thread` in the computed steps [i0, i1) of a layer with `gates` gates in a unit.
  Share(const Schedule& schedule, int64_t i0, int64_t i1, int64_t H, int64_t gates, int64_t panel,
        int thread, int threads) {
    const int64_t B = schedule.widest(i0, i1);
    const int64_t panels = (H + panel - 1) / panel;
    const int64_t by_work = static_cast<int64_t>(double(B) * H * H * gates / kMemberWork);
    const int64_t shared = std::clamp<int64_t>(B / kGroupRows, 1, threads);
    members = static_cast<int>(
        std::clamp<int64_t>(std::min(threads / shared, by_work / shared), 1, panels));
    const int64_t groups = members > 1 ? shared : std::min<int64_t>(threads, B);
    group = thread / members;
    member = thread % members;
    if (group >= groups) {
      r0 = r1 = c0 = c1 = 0;
      members = 1;
      return;
    }
    r0 = schedule.cut(i0, i1, group, groups);
    r1 = schedule.cut(i0, i1, group + 1, groups);
    c0 = std::min(H, panels * member / members * panel);
    c1 = std::min(H, panels * (member + 1) / members * panel);
  }
};

// Return how many rows of `share` exist at the i-th computed step. They are its first ones.
inline int64_t active(const Schedule& schedule, const Share& share, int64_t i) {
  return std::clamp<int64_t>(schedule.rows_at(i) - share.r0, 0, share.r1 - share.r0);
}

// The columns [begin, end) of a matrix.
struct Columns {
  int64_t begin, end;
};

// Return the part of N columns that belongs to `thread`, in whole panels. It may be empty.
inline Columns columns_of(int thread, int threads, int64_t N, int64_t panel) {
  const int64_t panels = (N + panel - 1) / panel;
  return {std::min(N, panels * thread / threads * panel),
          std::min(N, panels * (thread + 1) / threads * panel)};
}

// Write b_ih + b_hh of H units to `sum`, which has `width` elements. The elements after H become
// zeros. A bias that is nullptr is zero.
template <class S>
void sum_biases(const S* b_ih, const S* b_hh, int64_t H, int64_t width, Sum<S>* sum) {
  for (int64_t c = 0; c < width; ++c) {
    sum[c] = (b_ih != nullptr && c < H ? to_sum(b_ih[c]) : Sum<S>(0)) +
             (b_hh != nullptr && c < H ? to_sum(b_hh[c]) : Sum<S>(0));
  }
}

// Pack the part of a [K, H] matrix that belongs to `thread`.
template <class S, class O>
void pack_part(const VectorKernels<S, O>& kernels, const S* w, bool transpose, int64_t K, int64_t H,
               int thread, int threads, S* packed) {
  const Columns columns = columns_of(thread, threads, H, kernels.panel);
  if (columns.begin < columns.end) {
    kernels.pack(w, transpose, K, H, columns.begin, columns.end, packed);
  }
}

} // namespace rnnfast
