// What leaky units add to back-propagation through time; api/leaky.h has their equations.
#pragma once

#include <algorithm>

#include "backward_carry.h"
#include "schedule.h"
#include "work.h"

namespace rnnfast {

// The buffers and gradients of the leaky units of a layer. isa.h explains the types S and O.
template <class S, class O> class BackwardLeak {
  using C = Sum<S>;

public:
  // A block has at most `most_rows` rows, and `ld` elements from row to row of its buffers.
  BackwardLeak(const Shape& shape, const Backward<S>& call, const Schedule& schedule,
               int64_t most_rows, int64_t ld)
      : shape_(shape), call_(call), leak_(*call.leak), kernels_(current_kernels<S, O>()),
        schedule_(schedule), ld_(ld), carry_(shape, schedule, call.reverse) {
    const int64_t B = shape.B, H = shape.H;
    alpha_ = widened(leak_.alpha, H, round_up(H, kernels_.vector));
    if (leak_.current) {
      rest_ = allocate<S>(H);
      apply_to(nullptr, 1, rest_.get());
      if (call.h0 != nullptr) {
        first_r_ = allocate<S>(B * H);
        apply_to(call.h0, B, first_r_.get());
      }
    }
    if (leak_.dalpha != nullptr) {
      for (Buffer<S>& buffer : dstate_) {
        buffer = allocate<S>(most_rows * ld_);
      }
      dalpha_ = allocate<C>(2 * H);
    }
  }

  // The output r before the first step, [B, H]; nullptr: rest().
  const S* first_r() const { return first_r_ != nullptr ? first_r_.get() : call_.h0; }
  // The output r of the state zero, [H]; nullptr: zeros.
  const S* rest() const { return rest_.get(); }
  // The states of all time steps.
  const Sequence<const S>& states() const { return leak_.current ? leak_.states : call_.h; }

  // What is done to the sums of a time step, from row r on.
  LeakStep<S> step(int64_t r) const {
    LeakStep<S> step{};
    step.backward = true, step.current = leak_.current, step.f = leak_.f;
    step.alpha = alpha_.get();
    step.carry = carry_.row(r), step.carry_stride = carry_.stride();
    return step;
  }

  // Let `product`, which computes dpre of time step t in block k from row r on, read and write what
  // a LeakStep needs.
  void set_operands(FusedProduct<S, O>& product, const BlockRows& rows, int64_t k, int64_t t,
                    int64_t r) const {
    if (!leak_.current) {
      product.h = schedule_.at(leak_.saved, t, r), product.h_stride = leak_.saved.row;
    } else if (leak_.dstates.data != nullptr) {
      product.addend2 = schedule_.at(leak_.dstates, t, r);
      product.addend2_stride = leak_.dstates.row;
    }
    if (leak_.dalpha != nullptr) {
      product.out = rows.at(dstate_[k % 2].get(), ld_, t, r), product.out_stride = rows.stride(ld_);
    }
  }

  // Let `product`, which computes dh0 after time step t from row r on, read the first output.
  void set_first_h(FusedProduct<S, O>& product, int64_t t, int64_t r) const {
    if (!leak_.current) { // h is not used
      product.h = schedule_.at(call_.h, t, r), product.h_stride = call_.h.row;
    } else if (first_r_ != nullptr) {
      product.h = first_r_.get() + r * shape_.H, product.h_stride = shape_.H;
    } else {
      product.h = rest_.get(), product.h_stride = 0;
    }
  }

  // Rows [r0, r1) begin with the gradient of their last state.
  void begin(const Share& share, int64_t r0, int64_t r1) const {
    carry_.begin(share, r0, r1, call_.dh_n);
  }

  // See Carry::reset.
  void reset(const Share& share, int64_t t, int64_t active) const {
    carry_.reset(share, t, active);
  }

  // Write the gradient of the noise for the rows and columns of `o`, which begin at `row` and
  // column m0.
  void write_noise_gradient(BlockRows::Row row, const BlockRows& rows, const OuterProducts<S, O>& o,
                            int64_t m0) const {
    for (int64_t n = 0; leak_.dnoise.data != nullptr && n < o.K; ++n, row = rows.after(row)) {
      S* const to = schedule_.at(leak_.dnoise, row.t, row.b) + m0;
      if constexpr (std::is_same_v<O, C>) {
        kernels_.narrow(o.p + n * o.p_stride, o.M, to);
      } else {
        std::copy_n(o.p + n * o.p_stride, o.M, to);
      }
    }
  }

  // Add up the gradient of alpha for the same rows and columns, of which `row` has the number n0 in
  // block k. previous(row) is the state before a row, where nullptr stands for zeros.
  template <class Previous>
  void add_alpha_gradient(int64_t k, int64_t n0, BlockRows::Row row, const BlockRows& rows,
                          const OuterProducts<S, O>& o, int64_t m0,
                          const Previous& previous) const {
    if (leak_.dalpha == nullptr) {
      return;
    }
    C* const total = dalpha_.get() + m0;
    C* const sum = total + shape_.H; // of these rows alone, which is more accurate
    std::fill_n(sum, o.M, C(0));
    for (int64_t n = 0; n < o.K; ++n, row = rows.after(row)) {
      const S* const dstate = dstate_[k % 2].get() + (n0 + n) * ld_ + m0;
      const S* const target = schedule_.at(leak_.saved, row.t, row.b) + m0;
      const S* const state = previous(row);
      for (int64_t m = 0; m < o.M; ++m) {
        const C before = state != nullptr ? to_sum(state[m0 + m]) : C(0);
        sum[m] += to_sum(dstate[m]) * (to_sum(target[m]) - before);
      }
    }
    for (int64_t m = 0; m < o.M; ++m) {
      total[m] = o.add ? total[m] + sum[m] : sum[m];
    }
  }

  // After the last block: write the elements [m0, m1) of the gradient of alpha.
  void finish(int64_t m0, int64_t m1) const {
    if (leak_.dalpha != nullptr) {
      kernels_.narrow(dalpha_.get() + m0, m1 - m0, leak_.dalpha + m0);
    }
  }

private:
  // Write f of each of the states [count, H] to `r`. nullptr stands for zeros.
  void apply_to(const S* states, int64_t count, S* r) const {
    Buffer<C> row = allocate<C>(shape_.H);
    for (int64_t b = 0; b < count; ++b) {
      for (int64_t c = 0; c < shape_.H; ++c) {
        row[c] = apply(leak_.f, states != nullptr ? to_sum(states[b * shape_.H + c]) : C(0));
      }
      kernels_.narrow(row.get(), shape_.H, r + b * shape_.H);
    }
  }

  const Shape& shape_;
  const Backward<S>& call_;
  const LeakBackward<S>& leak_;
  const VectorKernels<S, O>& kernels_;
  const Schedule& schedule_;
  int64_t ld_;               // elements from row to row in dstate_
  Carry<S> carry_;           // the gradient that passes through the leak
  Buffer<C> alpha_;          // [H] in whole vectors
  Buffer<S> rest_, first_r_; // for a current: f(0), [H], and f(h0), [B, H]
  Buffer<S> dstate_[2];      // the gradients of the states of a block; the two take turns
  Buffer<C> dalpha_;         // two rows of [H]
};

} // namespace rnnfast
