// Which rows a call has at each time step, and where they lie.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "../api/rnn.h"

namespace rnnfast {

// The time steps of a call in the order of computation, and the rows of each. Index i counts the
// steps as they are computed, t is the time step. Row r of a packed batch has as many steps as
// there are batch sizes greater than r.
class Schedule {
public:
  // `from_end`: time step T - 1 is computed first.
  Schedule(const Shape& shape, bool from_end) : shape_(shape), from_end_(from_end) {
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

  // The time step that is computed i-th.
  int64_t time(int64_t i) const { return from_end_ ? shape_.T - 1 - i : i; }

  // The number of rows at the i-th computed step. It is 0 before the first and after the last.
  int64_t rows_at(int64_t i) const {
    if (i < 0 || i >= shape_.T) {
      return 0;
    }
    return shape_.batch_sizes != nullptr ? shape_.batch_sizes[time(i)] : shape_.B;
  }

  // Whether the call has resets.
  bool has_resets() const { return shape_.reset.data != nullptr; }

  // Whether a reset makes the state of this row zero before time step t. A direction that goes
  // backward in time (`reverse`) comes from step t + 1, and the reset of that step separates them.
  bool is_reset(int64_t t, int64_t row, bool reverse) const {
    const int64_t later = reverse ? t + 1 : t;
    return has_resets() && later < shape_.T &&
           (shape_.batch_sizes == nullptr || row < shape_.batch_sizes[later]) &&
           *at(shape_.reset, later, row);
  }

  // The address of row `row` of time step t.
  template <class P> P* at(const Sequence<P>& s, int64_t t, int64_t row) const {
    return s.data +
           (shape_.batch_sizes != nullptr ? (starts_[t] + row) * s.row : t * s.step + row * s.row);
  }

  // The number of row `row` of time step t among all rows in the order of time.
  int64_t number(int64_t t, int64_t row) const {
    return (shape_.batch_sizes != nullptr ? starts_[t] : t * shape_.B) + row;
  }

  // The number of steps.
  int64_t count() const { return shape_.T; }

  // The number of rows of all steps together.
  int64_t total() const { return total_; }

  // For each time step of a packed batch, the number of rows before it; otherwise empty.
  const std::vector<int64_t>& starts() const { return starts_; }

  // The number of rows of the computed steps [i0, i1) together.
  int64_t rows_in(int64_t i0, int64_t i1) const {
    int64_t sum = shape_.B * (i1 - i0);
    if (shape_.batch_sizes != nullptr) {
      sum = 0;
      for (int64_t i = i0; i < i1; ++i) {
        sum += rows_at(i);
      }
    }
    return sum;
  }

  // The most rows that one of the computed steps [i0, i1) has.
  int64_t widest(int64_t i0, int64_t i1) const {
    return i0 == i1 ? 0 : std::max(rows_at(i0), rows_at(i1 - 1));
  }

  // The first row of `group` when the rows are divided so that all `groups` have nearly the same
  // number of row-steps in [i0, i1).
  int64_t cut(int64_t i0, int64_t i1, int64_t group, int64_t groups) const {
    const int64_t B = widest(i0, i1);
    if (shape_.batch_sizes == nullptr || group == 0 || group == groups) {
      return B * group / groups;
    }
    // The rows are in order of falling length. t is the number of steps of row `row`.
    const int64_t goal = rows_in(i0, i1) * group / groups;
    int64_t sum = 0, row = 0;
    for (int64_t t = i1 - i0; row < B && sum < goal; ++row) {
      while (t > 0 && rows_at(from_end_ ? i1 - t : i0 + t - 1) <= row) {
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

// All rows of a block of steps, numbered from 0: step by step in the order of time or, if
// `batch_major`, sequence by sequence. A packed batch is always numbered step by step.
class BlockRows {
public:
  struct Row {
    int64_t t, b; // row b of time step t
  };

  // The block is the computed steps [i0, i1).
  BlockRows(const Shape& shape, const Schedule& schedule, int64_t i0, int64_t i1, bool batch_major)
      : batch_sizes_(shape.batch_sizes), starts_(schedule.starts().data()), B_(shape.B),
        t0_(i0 < i1 ? std::min(schedule.time(i0), schedule.time(i1 - 1)) : 0), step_count_(i1 - i0),
        count_(schedule.rows_in(i0, i1)), batch_major_(batch_sizes_ == nullptr && batch_major) {}

  int64_t count() const { return count_; }

  // The row with the number n.
  Row operator[](int64_t n) const {
    if (batch_sizes_ != nullptr) {
      const int64_t* const first = starts_ + t0_;
      const int64_t t = std::upper_bound(first, first + step_count_, *first + n) - first - 1;
      return {t0_ + t, *first + n - first[t]};
    }
    return batch_major_ ? Row{t0_ + n % step_count_, n / step_count_} : Row{t0_ + n / B_, n % B_};
  }

  // The row with the next number.
  Row after(Row row) const {
    if (batch_major_) {
      return row.t + 1 < t0_ + step_count_ ? Row{row.t + 1, row.b} : Row{t0_, row.b + 1};
    }
    const int64_t here = batch_sizes_ != nullptr ? batch_sizes_[row.t] : B_;
    return row.b + 1 < here ? Row{row.t, row.b + 1} : Row{row.t + 1, 0};
  }

  // In a buffer that holds the rows in this order, `ld` elements apart: the address of row b of
  // time step t, and the distance from there to row b + 1 of the same step.
  template <class T> T* at(T* data, int64_t ld, int64_t t, int64_t b) const {
    const int64_t n = batch_sizes_ != nullptr ? starts_[t] - starts_[t0_] + b
                      : batch_major_          ? b * step_count_ + t - t0_
                                              : (t - t0_) * B_ + b;
    return data + n * ld;
  }
  int64_t stride(int64_t ld) const { return batch_major_ ? step_count_ * ld : ld; }

private:
  const int64_t* batch_sizes_;
  const int64_t* starts_;
  int64_t B_, t0_, step_count_, count_;
  bool batch_major_;
};

// Throw std::out_of_range if a token is not in [0, I).
inline void check_tokens(const Schedule& schedule, const Sequence<const int64_t>& tokens,
                         int64_t I) {
  for (int64_t i = 0; i < schedule.count(); ++i) {
    for (int64_t b = 0; b < schedule.rows_at(i); ++b) {
      const int64_t token = *schedule.at(tokens, schedule.time(i), b);
      if (token < 0 || token >= I) {
        throw std::out_of_range("input: token " + std::to_string(token) + " is not in [0, " +
                                std::to_string(I) + "), the range of a one-hot input of size " +
                                std::to_string(I));
      }
    }
  }
}

} // namespace rnnfast
