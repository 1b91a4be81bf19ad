// How the work of a call is laid out: its buffers, and each thread's share of it.
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

// Multiply-adds, 10 microseconds of them, for which it pays to wake a thread.
constexpr double kThreadWork = 5e5;
// With fewer rows than this for each thread, threads share rows and split columns...
constexpr int64_t kGroupRows = 4;
// ...if a step has at least this many multiply-adds for each, to pay for the barrier.
constexpr double kMemberWork = 1 << 13;
// A W_hh that is larger is better split over threads than held whole by each.
constexpr int64_t kTogetherBytes = 1 << 19;

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

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

// Work space, taken and given back by the thread that makes the call.
template <class T> struct GiveBack {
  size_t size;
  void operator()(T* p) const { MemoryPool::of_thread().give(p, size); }
};
template <class T> using Buffer = std::unique_ptr<T[], GiveBack<T>>;

template <class T> Buffer<T> allocate(int64_t count) {
  size_t size = std::max<size_t>(64, round_up(count * sizeof(T), 64));
  void* const data = MemoryPool::of_thread().take(size);
  return Buffer<T>(static_cast<T*>(data), GiveBack<T>{size});
}

// Elements from a row of a compact buffer to the next: whole vectors plus one cache line, so that
// powers of two do not put every row into the same cache set.
template <class T> int64_t row_stride(int64_t n) {
  return round_up(n, 64 / sizeof(T)) + 64 / sizeof(T);
}

// How many threads to ask for, given the multiply-adds of the work.
inline int threads_for(int most, double work) {
  return work < 2 * kThreadWork
             ? 1
             : static_cast<int>(std::min<double>(std::max(most, 1), work / kThreadWork));
}

// out[m] (+)= sum over k of p[k, m], of what OuterProducts names so; by sums of a few rows, for
// accuracy.
template <class S, class O> void sum_columns(const OuterProducts<S, O>& o, Sum<S>* out) {
  constexpr int64_t kColumns = 64, kRows = 32;
  for (int64_t m0 = 0; m0 < o.M; m0 += kColumns) {
    const int64_t m1 = std::min(o.M, m0 + kColumns);
    for (int64_t k0 = 0; k0 < o.K; k0 += kRows) {
      Sum<S> sum[kColumns] = {};
      for (int64_t k = k0; k < std::min(o.K, k0 + kRows); ++k) {
        for (int64_t m = m0; m < m1; ++m) {
          sum[m - m0] += to_sum(o.p[k * o.p_stride + m]);
        }
      }
      for (int64_t m = m0; m < m1; ++m) {
        out[m] = o.add || k0 > 0 ? out[m] + sum[m - m0] : sum[m - m0];
      }
    }
  }
}

// How many parts of a stack to compute at the same time: both directions of a layer, or layers one
// behind the other. More than one only where the rows do not go round, and while each thread's
// share of the cache holds a whole W_hh.
template <class T> int64_t at_once(const Shape& shape, int64_t layers, int64_t directions) {
  const int64_t threads = std::max(shape.threads, 1);
  const int64_t groups = std::clamp<int64_t>(shape.B / kGroupRows, 1, threads);
  if (groups == threads || shape.H * shape.H * int64_t(sizeof(T)) > kTogetherBytes) {
    return 1;
  }
  return directions > 1 ? directions : std::min(layers, threads / groups);
}

// Threads that work as several teams at once: of which team one is, and as which of its members.
struct Team {
  int index, thread, threads;

  // With fewer threads than teams, every thread is in all of them: one after another.
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

// One thread's share: rows [r0, r1) and hidden columns [c0, c1), both perhaps empty.
struct Share {
  int group, member, members;
  int64_t r0, r1, c0, c1;

  // Of the steps [i0, i1).
  Share(const Schedule& schedule, int64_t i0, int64_t i1, int64_t H, int64_t panel, int thread,
        int threads) {
    const int64_t B = schedule.widest(i0, i1);
    const int64_t panels = (H + panel - 1) / panel;
    const int64_t by_work = static_cast<int64_t>(double(B) * H * H / kMemberWork);
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

// The rows of `share` at computed step i.
inline int64_t active(const Schedule& schedule, const Share& share, int64_t i) {
  return std::clamp<int64_t>(schedule.rows_at(i) - share.r0, 0, share.r1 - share.r0);
}

// Each thread's part of packing a K x H matrix.
template <class S, class O>
void pack_part(const VectorKernels<S, O>& kernels, const S* w, bool transpose, int64_t K, int64_t H,
               int thread, int threads, S* packed) {
  const int64_t panels = (H + kernels.panel - 1) / kernels.panel;
  const int64_t c0 = std::min(H, panels * thread / threads * kernels.panel);
  const int64_t c1 = std::min(H, panels * (thread + 1) / threads * kernels.panel);
  if (c0 < c1) {
    kernels.pack(w, transpose, K, H, c0, c1, packed);
  }
}

} // namespace rnnfast
