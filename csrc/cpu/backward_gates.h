// What gated units add to back-propagation through time; api/gated.h has their equations.
#pragma once

#include <algorithm>

#include "backward_carry.h"
#include "gates.h"
#include "schedule.h"
#include "work.h"

namespace rnnfast {

// The buffers and gradients of the gated units of a layer. isa.h explains the types S and O.
template <class S, class O> class BackwardGates {
public:
  BackwardGates(const Shape& shape, const Backward<S>& call, const Schedule& schedule)
      : shape_(shape), call_(call), gates_(*call.gates), kernels_(current_kernels<S, O>()),
        schedule_(schedule), carry_(shape, schedule, call.reverse) {}

  // What is done to the sums of time step t, from row r on.
  GateStep<S> step(int64_t t, int64_t r) const {
    GateStep<S> step{};
    step.cell = gates_.cell, step.backward = true;
    step.carry = carry_.row(r), step.carry_stride = carry_.stride();
    // The contract of a GateStep has one pointer for both passes. A backward step only reads.
    step.saved = const_cast<S*>(schedule_.at(gates_.saved, t, r));
    step.saved_stride = gates_.saved.row;
    return step;
  }

  // Rows [r0, r1) begin with the gradient of their last state. That of h of an LSTM is not carried.
  void begin(const Share& share, int64_t r0, int64_t r1) const {
    carry_.begin(share, r0, r1, has_c() ? gates_.dc_n : call_.dh_n);
  }

  // See Carry::reset.
  void reset(const Share& share, int64_t t, int64_t active) const {
    carry_.reset(share, t, active);
  }

  // Let `product`, which computes dh0 from row r on, add what is carried for a GRU.
  void set_first_h(FusedProduct<S, O>& product, int64_t r) const {
    if (!has_c()) {
      product.sums_before = carry_.row(r), product.sums_before_stride = carry_.stride();
    }
  }

  // Write the gradient of c0 for the rows [r0, r1), after their last step.
  void finish(const Share& share, int64_t r0, int64_t r1) const {
    for (int64_t r = r0; gates_.dc0 != nullptr && r < r1; ++r) {
      kernels_.narrow(carry_.row(r) + share.c0, share.c1 - share.c0,
                      gates_.dc0 + r * shape_.H + share.c0);
    }
  }

  // Whether the units have a state c beside h.
  bool has_c() const { return gates_.cell == GatedCell::kLstm; }

private:
  const Shape& shape_;
  const Backward<S>& call_;
  const GatesBackward<S>& gates_;
  const VectorKernels<S, O>& kernels_;
  const Schedule& schedule_;
  Carry<S> carry_; // what h or c receives elementwise from the later step
};

} // namespace rnnfast
