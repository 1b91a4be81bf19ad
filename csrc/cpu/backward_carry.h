// What leaky and gated units carry backward in time beside dpre.
#pragma once

#include <algorithm>

#include "schedule.h"
#include "work.h"

namespace rnnfast {

// The part of the gradient of a state that the step before receives elementwise, not by way of
// W_hh: one row of H elements for each row of the batch.
template <class S> class Carry {
  using C = Sum<S>;

public:
  Carry(const Shape& shape, const Schedule& schedule, bool reverse)
      : H_(shape.H), schedule_(schedule), reverse_(reverse), stride_(row_stride<C>(shape.H)),
        rows_(allocate<C>(shape.B * stride_)) {}

  C* row(int64_t r) const { return rows_.get() + r * stride_; }
  int64_t stride() const { return stride_; }

  // Rows [r0, r1) begin with the gradient `last` of their last state, [B, H]; nullptr: zeros.
  void begin(const Share& share, int64_t r0, int64_t r1, const S* last) const {
    for (int64_t r = r0; r < r1; ++r) {
      for (int64_t c = share.c0; c < share.c1; ++c) {
        row(r)[c] = last != nullptr ? to_sum(last[r * H_ + c]) : C(0);
      }
    }
  }

  // No gradient passes a reset before time step t to the step before. `active` rows of `share` have
  // this step.
  void reset(const Share& share, int64_t t, int64_t active) const {
    for (int64_t r = share.r0; schedule_.has_resets() && r < share.r0 + active; ++r) {
      if (schedule_.is_reset(t, r, reverse_)) {
        std::fill(row(r) + share.c0, row(r) + share.c1, C(0));
      }
    }
  }

private:
  int64_t H_;
  const Schedule& schedule_;
  bool reverse_;
  int64_t stride_; // elements from row to row
  Buffer<C> rows_;
};

} // namespace rnnfast
