// A layer of gated units that gets one time step at a time. Its weights are packed once.
#pragma once

#include "gates.h"
#include "work.h"

namespace rnnfast {

// Gated layers multiply W_ih and W_hh one after the other, because the two parts of a gate of a GRU
// are not just added. isa.h explains the types S and O.
template <class S, class O> class GatedLayer {
  using C = Sum<S>;

public:
  // A layer of B rows, whose state begins as zeros. w_ih: [G H, I], or nullptr if the caller has
  // the products with it. w_hh: [G H, H]. b_ih, b_hh: [G H]; nullptr: zeros. They are copied.
  GatedLayer(const VectorKernels<S, O>& kernels, GatedCell cell, int64_t B, int64_t I, int64_t H,
             const S* w_ih, const S* w_hh, const S* b_ih, const S* b_hh)
      : kernels_(kernels), cell_(cell), B_(B), I_(I), H_(H),
        layout_{H, gates_of(cell), kernels.panel}, bias_(gate_biases(layout_, cell, b_ih, b_hh)),
        sums_ld_(row_stride<C>(layout_.width())), carry_ld_(row_stride<C>(H)),
        carry_(allocate<C>(B * carry_ld_)) {
    w_hh_ = packed(w_hh, H);
    if (w_ih != nullptr) {
      w_ih_ = packed(w_ih, I);
      sums_ = allocate<C>(B * sums_ld_);
    }
    if (cell == GatedCell::kGru) {
      const S* const b_hn = b_hh != nullptr ? b_hh + 2 * H : nullptr;
      recurrent_bias_ = widened(b_hn, b_hn != nullptr ? H : 0, round_up(H, kernels.vector));
    }
    std::fill_n(carry_.get(), B * carry_ld_, C(0));
  }

  // What is added to the products with W_ih, [UnitLayout::width()].
  const C* bias() const { return bias_.get(); }
  // Row b of what is carried from step to step, [H]: h of a GRU or c of an LSTM.
  C* carry(int64_t b) const { return carry_.get() + b * carry_ld_; }

  // Compute the units of a time step that belong to a thread. `product` has the rows of h before
  // the step as its left factor, and where to write h. x: [B, I], read; row b begins at x + b *
  // x_stride. If I is odd and O is bfloat16, element I must be finite. `row`: what is used instead
  // of W_ih x + bias() for every row of the batch; nullptr: it is computed.
  void step(FusedProduct<S, O> product, const O* x, int64_t x_stride, const C* row, int thread,
            int threads) const {
    const Columns units = columns_of(thread, threads, H_, kernels_.panel);
    product.sums_before = row, product.sums_before_stride = 0;
    if (row == nullptr) {
      const Columns columns = layout_.columns(units.begin, units.end);
      FusedProduct<S, O> input{};
      input.rows = B_, input.K = I_, input.N = layout_.width();
      input.col_begin = columns.begin, input.col_end = columns.end;
      input.a = x, input.a_stride = x_stride, input.w = w_ih_.get();
      input.act = Activation::kIdentity;
      input.sums_before = bias(), input.sums_before_stride = 0;
      input.sums = sums_.get(), input.sums_stride = sums_ld_;
      kernels_.fused_product(input);
      product.sums_before = sums_.get(), product.sums_before_stride = sums_ld_;
    }
    GateStep<S> gates{};
    gates.cell = cell_, gates.bias = recurrent_bias_.get();
    gates.carry = carry(0), gates.carry_stride = carry_ld_;
    product.rows = B_, product.K = H_, product.N = H_, product.w = w_hh_.get();
    product.col_begin = units.begin, product.col_end = units.end, product.gates = &gates;
    kernels_.fused_product(product);
  }

private:
  // A W_ih or W_hh, [G H, K], in the order of the layout.
  Buffer<S> packed(const S* w, int64_t K) const {
    Buffer<S> result = allocate<S>(kernels_.packed_size(K, layout_.width()));
    const Buffer<S> last = allocate<S>(layout_.last_size(K));
    pack_gates(kernels_, w, layout_, K, 0, 1, last.get(), result.get());
    return result;
  }

  const VectorKernels<S, O>& kernels_;
  const GatedCell cell_;
  const int64_t B_, I_, H_;
  const UnitLayout layout_;
  const Buffer<C> bias_;
  const int64_t sums_ld_, carry_ld_; // elements from row to row of sums_ and carry_
  const Buffer<C> carry_;
  Buffer<S> w_ih_, w_hh_;    // packed
  Buffer<C> sums_;           // the products with W_ih
  Buffer<C> recurrent_bias_; // b_hn of a GRU
};

} // namespace rnnfast
