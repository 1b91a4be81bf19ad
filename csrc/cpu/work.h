// How a call's work is laid out: buffers, the rows of each step, and each thread's share of them.
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
#include "pool.h"

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
  void operator()(T* p) const { Pool::of_thread().give(p, size); }
};
template <class T> using Buffer = std::unique_ptr<T[], GiveBack<T>>;

template <class T> Buffer<T> allocate(int64_t count) {
  size_t size = std::max<size_t>(64, round_up(count * sizeof(T), 64));
  void* const data = Pool::of_thread().take(size);
  return Buffer<T>(static_cast<T*>(data), GiveBack<T>{size});
}

// Elements from a row of a compact buffer to the next: whole vectors plus one cache line, so that
// powers of two do not put every row into the same cache set.
template <class T> int64_t row_stride(int64_t n) {
  return round_up(n, 64 / sizeof(T)) + 64 / sizeof(T);
}

// Which rows are there at each step, in the order of computation.
class Steps {
public:
  Steps(const Shape& shape, bool from_end) : shape_(shape), from_end_(from_end) {
    if (shape.batch_sizes != nullptr) {
      starts_.resize(shape.T);
      int64_t sum = 0;
      for (int64_t t = 0; t < shape.T; ++t) {
        starts_[t] = sum;
        sum += shape.batch_sizes[t];
      }
      total_ = sum;
    } else {
      total_ = shape.T * shape.B;
    }
  }

  int64_t time(int64_t i) const { return from_end_ ? shape_.T - 1 - i : i; }

  // Rows at the i-th computed step; 0 before the first and after the last.
  int64_t rows(int64_t i) const {
    if (i < 0 || i >= shape_.T) {
      return 0;
    }
    return shape_.batch_sizes != nullptr ? shape_.batch_sizes[time(i)] : shape_.B;
  }

  // Row `row` of step t.
  template <class P> P* at(const Sequence<P>& s, int64_t t, int64_t row) const {
    return s.data +
           (shape_.batch_sizes != nullptr ? (starts_[t] + row) * s.row : t * s.step + row * s.row);
  }

  int64_t count() const { return shape_.T; }

  int64_t total() const { return total_; }

  // The first row of step t among all rows of a packed batch.
  const std::vector<int64_t>& starts() const { return starts_; }

  // Rows of the steps [i0, i1) together.
  int64_t rows(int64_t i0, int64_t i1) const {
    int64_t sum = shape_.B * (i1 - i0);
    if (shape_.batch_sizes != nullptr) {
      sum = 0;
      for (int64_t i = i0; i < i1; ++i) {
        sum += rows(i);
      }
    }
    return sum;
  }

  // The most rows that a step of [i0, i1) has.
  int64_t widest(int64_t i0, int64_t i1) const {
    return i0 == i1 ? 0 : std::max(rows(i0), rows(i1 - 1));
  }

  // Where to cut the rows so that `groups` get nearly the same share of the steps [i0, i1).
  int64_t cut(int64_t i0, int64_t i1, int64_t group, int64_t groups) const {
    const int64_t B = widest(i0, i1);
    if (shape_.batch_sizes == nullptr || group == 0 || group == groups) {
      return B * group / groups;
    }
    // Rows are in order of falling length; row r has as many steps as have more than r rows.
    const int64_t goal = rows(i0, i1) * group / groups;
    int64_t sum = 0, row = 0;
    for (int64_t t = i1 - i0; row < B && sum < goal; ++row) {
      while (t > 0 && rows(from_end_ ? i1 - t : i0 + t - 1) <= row) {
        --t;
      }
      sum += t;
    }
    return row;
  }

private:
  Shape shape_;
  bool from_end_;
  std::vector<int64_t> starts_;
  int64_t total_;
};

// The rows of the steps [i0, i1), numbered through: step by step in time or, if `batch_major`,
// sequence by sequence. A packed batch is always step by step.
class Rows {
public:
  struct Row {
    int64_t t, b;
  };

  Rows(const Shape& shape, const Steps& steps, int64_t i0, int64_t i1, bool batch_major)
      : batch_sizes_(shape.batch_sizes), starts_(steps.starts().data()), B_(shape.B),
        t0_(i0 < i1 ? std::min(steps.time(i0), steps.time(i1 - 1)) : 0), steps_(i1 - i0),
        count_(steps.rows(i0, i1)), batch_major_(batch_sizes_ == nullptr && batch_major) {}

  int64_t count() const { return count_; }

  Row operator[](int64_t n) const {
    if (batch_sizes_ != nullptr) {
      const int64_t* const first = starts_ + t0_;
      const int64_t t = std::upper_bound(first, first + steps_, *first + n) - first - 1;
      return {t0_ + t, *first + n - first[t]};
    }
    return batch_major_ ? Row{t0_ + n % steps_, n / steps_} : Row{t0_ + n / B_, n % B_};
  }

  Row after(Row row) const {
    if (batch_major_) {
      return row.t + 1 < t0_ + steps_ ? Row{row.t + 1, row.b} : Row{t0_, row.b + 1};
    }
    const int64_t here = batch_sizes_ != nullptr ? batch_sizes_[row.t] : B_;
    return row.b + 1 < here ? Row{row.t, row.b + 1} : Row{row.t + 1, 0};
  }

  // Row b of step t in a buffer that holds the rows in this order, `ld` elements apart, and the
  // distance to row b + 1.
  template <class T> T* at(T* data, int64_t ld, int64_t t, int64_t b) const {
    const int64_t n = batch_sizes_ != nullptr ? starts_[t] - starts_[t0_] + b
                      : batch_major_          ? b * steps_ + t - t0_
                                              : (t - t0_) * B_ + b;
    return data + n * ld;
  }
  int64_t stride(int64_t ld) const { return batch_major_ ? steps_ * ld : ld; }

private:
  const int64_t* batch_sizes_;
  const int64_t* starts_;
  int64_t B_, t0_, steps_, count_;
  bool batch_major_;
};

inline void check_tokens(const Steps& steps, const Sequence<const int64_t>& tokens, int64_t I) {
  for (int64_t i = 0; i < steps.count(); ++i) {
    for (int64_t b = 0; b < steps.rows(i); ++b) {
      const int64_t token = *steps.at(tokens, steps.time(i), b);
      if (token < 0 || token >= I) {
        throw std::out_of_range("token " + std::to_string(token) + " is not in [0, " +
                                std::to_string(I) + "), the inputs of this layer");
      }
    }
  }
}

// How many threads to ask for, given the multiply-adds of the work.
inline int threads_for(int most, double work) {
  return work < 2 * kThreadWork
             ? 1
             : static_cast<int>(std::min<double>(std::max(most, 1), work / kThreadWork));
}

// out[m] (+)= sum over k of p[k, m], of what Outer names so; by sums of a few rows, for accuracy.
template <class S, class O> void sum_columns(const Outer<S, O>& o, Sum<S>* out) {
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
  Share(const Steps& steps, int64_t i0, int64_t i1, int64_t H, int64_t panel, int thread,
        int threads) {
    const int64_t B = steps.widest(i0, i1);
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
    r0 = steps.cut(i0, i1, group, groups);
    r1 = steps.cut(i0, i1, group + 1, groups);
    c0 = std::min(H, panels * member / members * panel);
    c1 = std::min(H, panels * (member + 1) / members * panel);
  }
};

// The rows of `share` at computed step i.
inline int64_t active(const Steps& steps, const Share& share, int64_t i) {
  return std::clamp<int64_t>(steps.rows(i) - share.r0, 0, share.r1 - share.r0);
}

// Each thread's part of packing a K x H matrix.
template <class S, class O>
void pack_part(const Kernels<S, O>& kernels, const S* w, bool transpose, int64_t K, int64_t H,
               int thread, int threads, S* packed) {
  const int64_t panels = (H + kernels.panel - 1) / kernels.panel;
  const int64_t c0 = std::min(H, panels * thread / threads * kernels.panel);
  const int64_t c1 = std::min(H, panels * (thread + 1) / threads * kernels.panel);
  if (c0 < c1) {
    kernels.pack(w, transpose, K, H, c0, c1, packed);
  }
}

} // namespace rnnfast
