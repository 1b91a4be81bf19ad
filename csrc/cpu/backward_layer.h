// Back-propagation through time of one direction of one layer, block by block. backward.cpp says
// what a block is, and calls the parts.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "backward_gates.h"
#include "backward_leak.h"
#include "step_blocks.h"
#include "waiting.h"
#include "work.h"

namespace rnnfast {

// One direction of one layer. The caller owns the buffers for a block. isa.h explains the types S
// and O.
template <class S, class O> class BackwardLayer {
  using C = Sum<S>;

public:
  // Allocates for up to `most_threads` threads. `hands_on`: dx goes to a buffer, which the layer
  // below reads.
  BackwardLayer(const Shape& shape, const Backward<S>& call, int most_threads, bool hands_on)
      : shape_(shape), call_(call), kernels_(current_kernels<S, O>()),
        schedule_(shape, !call.reverse),
        slots_(call.gates != nullptr ? &call.gates->cell : nullptr),
        ld_(row_stride<O>(slots_.gradients * shape.H)),
        blocks_(schedule_, ld_ * int64_t(sizeof(O))), dx_(hands_on || call.dx.data != nullptr) {
    const int64_t H = shape.H, I = call.I, outputs = slots_.gates * H;
    w_hh_ = allocate<S>(kernels_.packed_size(outputs, H));
    w_ih_ = allocate<S>(dx_ ? kernels_.packed_size(outputs, I) : 0);
    if (dx_ && slots_.input.size() > 1) { // in the order of the gradients
      ordered_w_ih_ = allocate<S>(outputs * I);
      for (const GateRun& run : slots_.input) {
        std::copy_n(call.w_ih + run.gate * H * I, run.count * H * I,
                    ordered_w_ih_.get() + run.gradient * H * I);
      }
    }
    state_ = allocate<O>(shape.B * ld_);
    clear_padding(state_.get(), shape.B);
    if constexpr (!std::is_same_v<S, C>) {
      // The gradients of 16-bit weights are summed over all blocks in float and rounded once.
      dw_ih_ = allocate<C>(call.dw_ih != nullptr ? outputs * I : 0);
      dw_hh_ = allocate<C>(call.dw_hh != nullptr ? outputs * H : 0);
      db_ = allocate<C>(call.db != nullptr ? outputs : 0);
      db_hh_ = allocate<C>(db_hh() != nullptr ? outputs : 0);
      dtable_ = allocate<C>(call.dtable != nullptr ? I * outputs : 0);
    }
    if (call.gates != nullptr) {
      gates_ = std::make_unique<BackwardGates<S, O>>(shape, call, schedule_);
    }
    if (call.leak != nullptr) {
      leak_ =
          std::make_unique<BackwardLeak<S, O>>(shape, call, schedule_, blocks_.most_rows(), ld_);
    }
    if (schedule_.has_resets()) {
      // Each member of a group needs the rows of the group. The members of one group multiplied by
      // B are at most this number of rows.
      connected_ = allocate<O>((shape.B + most_threads * 2 * kGroupRows) * ld_);
    }
    barriers_.reset(new Barrier[most_threads]);
  }

  const StepBlocks& blocks() const { return blocks_; }
  bool wants_dx() const { return dx_; }
  // Elements from row to row of dpre, which has the gradients of all gates.
  int64_t ld() const { return ld_; }

  // A product of pairs may read one element after the last gradient of a row, which must be zero.
  void clear_padding(O* dpre, int64_t rows) const {
    const int64_t width = slots_.gradients * shape_.H;
    for (int64_t r = 0; r < rows; ++r) {
      std::fill(dpre + r * ld_ + width, dpre + (r + 1) * ld_, O{});
    }
  }

  // Pack this thread's part of the weights.
  void pack(int thread, int threads) {
    const int64_t K = slots_.gates * shape_.H;
    pack_part(kernels_, call_.w_hh, false, K, shape_.H, thread, threads, w_hh_.get());
    if (dx_) {
      const S* const w_ih = ordered_w_ih_ != nullptr ? ordered_w_ih_.get() : call_.w_ih;
      pack_part(kernels_, w_ih, false, K, call_.I, thread, threads, w_ih_.get());
    }
  }

  // The rows of block k. They are numbered sequence by sequence if the rows of a sequence are
  // adjacent in h and there are many of them, because the products then read long runs of memory.
  BlockRows block_rows(int64_t k) const {
    const int64_t steps = blocks_.first(k + 1) - blocks_.first(k);
    const bool batch_major = call_.h.step < call_.h.row && steps > shape_.B;
    return BlockRows(shape_, schedule_, blocks_.first(k), blocks_.first(k + 1), batch_major);
  }

  // The recurrence through block k: compute dpre, [rows of the block, ld_], and in the last step of
  // a row also dh0. `dy` is what the layer above has handed on, with `dy_ld` elements from row to
  // row; nullptr: the caller's dy is read.
  void recur(int64_t k, const S* dy, int64_t dy_ld, O* dpre, int thread, int threads) {
    const int64_t H = shape_.H, i0 = blocks_.first(k), i1 = blocks_.first(k + 1);
    const BlockRows rows = block_rows(k);
    const Share share(schedule_, i0, i1, H, slots_.gates, kernels_.panel, thread, threads);
    if (share.r0 == share.r1 || share.c0 == share.c1) {
      return;
    }
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t active = rnnfast::active(schedule_, share, i),
                    after = rnnfast::active(schedule_, share, i + 1), t = schedule_.time(i);
      if (active == 0) {
        continue;
      }
      // Rows that begin at this step have no dpre of a step before. dh_n takes the place of the
      // product. `first` is true for these rows.
      const int64_t continuing = std::min(rnnfast::active(schedule_, share, i - 1), active);
      for (const bool first : {false, true}) {
        const int64_t begin = first ? continuing : 0, end = first ? active : continuing;
        if (begin == end) {
          continue;
        }
        const int64_t r = share.r0 + begin;
        FusedProduct<S, O> product{};
        product.rows = end - begin, product.K = first ? 0 : slots_.gates * H, product.N = H;
        product.col_begin = share.c0, product.col_end = share.c1, product.w = w_hh_.get();
        if (i == i0) {
          product.a = state_.get() + r * ld_ + recurrent_offset(), product.a_stride = ld_;
        } else if (!first) {
          set_left_factor(product, rows, dpre, schedule_.time(i - 1), r, share);
        }
        product.act = shape_.relu ? Activation::kReluGrad : Activation::kTanhGrad;
        if (dy != nullptr) {
          product.addend = rows.at(dy, dy_ld, t, r), product.addend_stride = rows.stride(dy_ld);
        } else if (call_.dy.data != nullptr) {
          product.addend = schedule_.at(call_.dy, t, r), product.addend_stride = call_.dy.row;
        }
        const bool is_carried = leak_ != nullptr || (gates_ != nullptr && !gates_->has_c());
        if (first && call_.dh_n != nullptr && !is_carried) {
          product.addend2 = call_.dh_n + r * H, product.addend2_stride = H;
        }
        if (gates_ == nullptr) {
          product.h = schedule_.at(call_.h, t, r), product.h_stride = call_.h.row;
        }
        product.operand = rows.at(dpre, ld_, t, r), product.operand_stride = rows.stride(ld_);
        LeakStep<S> leak_step;
        if (leak_ != nullptr) {
          leak_step = leak_->step(r), product.leak = &leak_step;
          leak_->set_operands(product, rows, k, t, r);
          if (first) {
            leak_->begin(share, r, share.r0 + end);
          }
        }
        GateStep<S> gate_step;
        if (gates_ != nullptr) {
          gate_step = gates_->step(t, r), product.gates = &gate_step;
          if (first) {
            gates_->begin(share, r, share.r0 + end);
          }
        }
        kernels_.fused_product(product);
      }
      barriers_[share.group].wait(share.members);
      if (leak_ != nullptr) {
        leak_->reset(share, t, active);
      }
      if (gates_ != nullptr) {
        gates_->reset(share, t, active);
        gates_->finish(share, share.r0 + after, share.r0 + active);
      }
      if (call_.dh0 != nullptr && after < active) { // this is the last step of some rows
        const int64_t r = share.r0 + after;
        FusedProduct<S, O> product{};
        product.rows = active - after, product.K = slots_.gates * H, product.N = H;
        product.col_begin = share.c0, product.col_end = share.c1;
        set_left_factor(product, rows, dpre, t, r, share);
        product.w = w_hh_.get();
        product.act = Activation::kIdentity;
        product.out = call_.dh0 + r * H, product.out_stride = H;
        LeakStep<S> leak_step;
        if (leak_ != nullptr) {
          leak_step = leak_->step(r), product.leak = &leak_step;
          leak_->set_first_h(product, t, r);
        } else if (gates_ != nullptr) {
          gates_->set_first_h(product, r);
        }
        kernels_.fused_product(product);
      }
    }
    // The next block may use a different buffer for dpre and have different shares, so the dpre of
    // the last step is copied to where each of them finds it.
    for (int64_t b = 0; b < rnnfast::active(schedule_, share, i1 - 1); ++b) {
      const O* const last = rows.at(dpre, ld_, schedule_.time(i1 - 1), share.r0 + b);
      // The lanes after the last column are copied too, except where the next gate begins.
      const bool padded = slots_.gradients == 1 && share.c1 == H;
      const int64_t count = (padded ? round_up(H, kernels_.vector) : share.c1) - share.c0;
      const bool is_reset = schedule_.is_reset(schedule_.time(i1 - 1), share.r0 + b, call_.reverse);
      for (int64_t g = 0; g < slots_.gradients; ++g) {
        O* const to = state_.get() + (share.r0 + b) * ld_ + g * H + share.c0;
        if (is_reset) {
          std::fill_n(to, count, O{});
        } else {
          std::copy_n(last + g * H + share.c0, count, to);
        }
      }
    }
  }

  // Compute dx = dpre W_ih for this thread's rows of block k. dx goes to `handed`, with `handed_ld`
  // elements from row to row, or to the caller's dx if `handed` is nullptr.
  //
  // The two directions of a layer have the same dx. For each time step, the direction whose block
  // comes first writes dx, and the other direction adds to it. `opposite` is the other direction,
  // or nullptr. If a time step is in block k of both, the direction that is not `second` is first.
  void input_gradient(int64_t k, const O* dpre, S* handed, int64_t handed_ld,
                      const BackwardLayer* opposite, bool second, int thread, int threads) const {
    const BlockRows rows = block_rows(k);
    const auto adds = [&](int64_t t) {
      const int64_t theirs = opposite != nullptr ? opposite->blocks_.of_time(t) : k + 1;
      return theirs < k || (theirs == k && second);
    };
    const int64_t end = rows.count() * (thread + 1) / threads;
    for (int64_t n = rows.count() * thread / threads; n < end;) {
      FusedProduct<S, O> product{};
      product.K = slots_.gates * shape_.H, product.N = call_.I, product.col_end = call_.I;
      product.a = dpre + n * ld_, product.a_stride = ld_, product.w = w_ih_.get();
      product.act = Activation::kIdentity;
      if (handed != nullptr) {
        product.rows = end - n, product.out = handed + n * handed_ld,
        product.out_stride = handed_ld;
      } else {
        // One product takes as many rows as lie evenly spaced in dx.
        BlockRows::Row row = rows[n];
        const bool add = adds(row.t);
        product.out = schedule_.at(call_.dx, row.t, row.b);
        for (; n + product.rows < end && add == adds(row.t);
             ++product.rows, row = rows.after(row)) {
          const int64_t ahead = schedule_.at(call_.dx, row.t, row.b) - product.out;
          product.out_stride = product.rows == 1 ? ahead : product.out_stride;
          if (ahead != product.rows * product.out_stride) {
            break;
          }
        }
        product.addend = add ? product.out : nullptr, product.addend_stride = product.out_stride;
      }
      kernels_.fused_product(product);
      n += product.rows;
    }
  }

  // Add the part of block k to the gradients of the weights: to this thread's rows of dW_ih and
  // dW_hh, elements of db and columns of dtable. Each thread packs the right factors for itself
  // into `q`, which has kOuterRows rows, because a shared copy would have to come from the cache of
  // a different core.
  void weight_gradients(int64_t k, const O* dpre, O* q, int thread, int threads) const {
    const BlockRows rows = block_rows(k);
    const int64_t H = shape_.H, I = call_.I;
    for (int64_t n0 = 0; n0 < rows.count(); n0 += kOuterRows) {
      const BlockRows::Row first = rows[n0];
      OuterProducts<S, O> o{};
      o.K = std::min(kOuterRows, rows.count() - n0), o.add = k > 0 || n0 > 0;
      o.p_stride = ld_, o.q = q;
      // Let `o` read this thread's part of a run, and return the row of the weights it belongs to.
      const auto set_part = [&](const GateRun& run) {
        const Part part(run.count * H, thread, threads);
        o.p = dpre + n0 * ld_ + run.gradient * H + part.begin, o.M = part.end - part.begin;
        return run.gate * H + part.begin;
      };
      const auto add_product = [&](const std::vector<GateRun>& runs, int64_t N, C* out,
                                   const auto& right_row) {
        const S* right[kOuterRows];
        BlockRows::Row row = first;
        for (int64_t n = 0; n < o.K; ++n, row = rows.after(row)) {
          right[n] = right_row(row);
        }
        kernels_.pack_rows(right, o.K, N, q);
        for (const GateRun& run : runs) {
          const int64_t m0 = set_part(run);
          o.N = N, o.out = out + m0 * N;
          kernels_.outer_products(o);
        }
      };
      if (call_.dw_ih != nullptr) {
        add_product(slots_.input, I, sums(call_.dw_ih, dw_ih_),
                    [&](BlockRows::Row row) { return schedule_.at(call_.x, row.t, row.b); });
      }
      if (call_.dw_hh != nullptr) {
        add_product(slots_.recurrent, H, sums(call_.dw_hh, dw_hh_), [&](BlockRows::Row row) {
          return previous(row, call_.h, leak_ != nullptr ? leak_->first_r() : call_.h0,
                          leak_ != nullptr ? leak_->rest() : nullptr);
        });
      }
      for (const GateRun& run : slots_.recurrent) {
        const int64_t m0 = set_part(run);
        if (db_hh() != nullptr) {
          sum_columns(o, sums(db_hh(), db_hh_) + m0);
        }
      }
      for (const GateRun& run : slots_.input) {
        const int64_t m0 = set_part(run);
        if (call_.db != nullptr) {
          sum_columns(o, sums(call_.db, db_) + m0);
        }
        if (call_.dtable != nullptr) {
          table_gradient(rows, first, o, m0);
        }
        if (leak_ != nullptr) {
          const Sequence<const S>& states = leak_->states();
          leak_->write_noise_gradient(first, rows, o, m0);
          leak_->add_alpha_gradient(k, n0, first, rows, o, m0, [&](BlockRows::Row row) {
            return previous(row, states, call_.h0, nullptr);
          });
        }
      }
    }
    if (k + 1 != blocks_.count()) {
      return;
    }
    if (leak_ != nullptr) {
      const Part part(H, thread, threads);
      leak_->finish(part.begin, part.end);
    }
    if constexpr (!std::is_same_v<S, C>) {
      const auto round = [&](const Buffer<C>& from, int64_t begin, int64_t count, S* to) {
        if (to != nullptr) {
          kernels_.narrow(from.get() + begin, count, to + begin);
        }
      };
      for (const GateRun& run : slots_.input) {
        const Part part(run.count * H, thread, threads);
        const int64_t m0 = run.gate * H + part.begin, count = part.end - part.begin;
        round(dw_ih_, m0 * I, count * I, call_.dw_ih);
        round(db_, m0, count, call_.db);
        for (int64_t token = 0; token < I; ++token) {
          round(dtable_, token * slots_.gates * H + m0, count, call_.dtable);
        }
      }
      for (const GateRun& run : slots_.recurrent) {
        const Part part(run.count * H, thread, threads);
        const int64_t m0 = run.gate * H + part.begin, count = part.end - part.begin;
        round(dw_hh_, m0 * H, count * H, call_.dw_hh);
        round(db_hh_, m0, count, db_hh());
      }
    }
  }

private:
  // The part of n elements that belongs to a thread.
  struct Part {
    int64_t begin, end;
    Part(int64_t n, int thread, int threads)
        : begin(n * thread / threads), end(n * (thread + 1) / threads) {}
  };

  // The gradient of b_hh, where it is not that of b_ih; otherwise nullptr.
  S* db_hh() const { return call_.gates != nullptr ? call_.gates->db_hh : nullptr; }

  // Where the gradients that W_hh is multiplied by begin in a row of dpre.
  int64_t recurrent_offset() const { return slots_.recurrent[0].gradient * shape_.H; }

  // Let `product` read dpre of time step t, from row r on. A row that was reset before step t hands
  // no gradient to the step before. Then the rows are copied, and these are zeros.
  void set_left_factor(FusedProduct<S, O>& product, const BlockRows& rows, const O* dpre, int64_t t,
                       int64_t r, const Share& share) {
    product.a = rows.at(dpre, ld_, t, r), product.a_stride = rows.stride(ld_);
    bool any = false;
    for (int64_t n = 0; schedule_.has_resets() && n < product.rows; ++n) {
      any |= schedule_.is_reset(t, r + n, call_.reverse);
    }
    if (!any) {
      product.a += recurrent_offset();
      return;
    }
    const int64_t before = share.members * share.r0 + share.member * (share.r1 - share.r0);
    O* const copy = connected_.get() + (before + r - share.r0) * ld_;
    for (int64_t n = 0; n < product.rows; ++n) {
      if (schedule_.is_reset(t, r + n, call_.reverse)) {
        std::fill_n(copy + n * ld_, ld_, O{});
      } else {
        std::copy_n(product.a + n * product.a_stride, ld_, copy + n * ld_);
      }
    }
    product.a = copy + recurrent_offset(), product.a_stride = ld_;
  }

  // Where a gradient is summed: in the caller's tensor if its elements have the type of the sums,
  // otherwise in a buffer of this object.
  static C* sums(S* gradient, const Buffer<C>& own) {
    if constexpr (std::is_same_v<S, C>) {
      return gradient;
    } else {
      return own.get();
    }
  }

  // The row of `states` before this row in the order of the forward pass. Before the first step
  // that is a row of `first`, [B, H], if that is not nullptr. Otherwise, and after a reset, it is
  // `zero`. nullptr stands for zeros.
  const S* previous(BlockRows::Row row, const Sequence<const S>& states, const S* first,
                    const S* zero) const {
    if (schedule_.is_reset(row.t, row.b, call_.reverse)) {
      return zero;
    }
    const int64_t t = call_.reverse ? row.t + 1 : row.t - 1;
    if (t >= 0 && t < shape_.T &&
        (shape_.batch_sizes == nullptr || row.b < shape_.batch_sizes[t])) {
      return schedule_.at(states, t, row.b);
    }
    return first != nullptr ? first + row.b * shape_.H : zero;
  }

  // Add each row of dpre to the row of dtable that belongs to its token.
  void table_gradient(const BlockRows& rows, BlockRows::Row row, const OuterProducts<S, O>& o,
                      int64_t m0) const {
    const int64_t width = slots_.gates * shape_.H;
    C* const dtable = sums(call_.dtable, dtable_);
    for (int64_t token = 0; !o.add && token < call_.I; ++token) {
      std::fill_n(dtable + token * width + m0, o.M, C(0));
    }
    for (int64_t n = 0; n < o.K; ++n, row = rows.after(row)) {
      const O* const from = o.p + n * o.p_stride;
      C* const to = dtable + *schedule_.at(call_.tokens, row.t, row.b) * width + m0;
      for (int64_t m = 0; m < o.M; ++m) {
        to[m] += to_sum(from[m]);
      }
    }
  }

  const Shape& shape_;
  const Backward<S>& call_;
  const VectorKernels<S, O>& kernels_;
  Schedule schedule_;
  GateSlots slots_; // the gradients of a row of dpre
  int64_t ld_;      // elements from row to row in the buffers
  StepBlocks blocks_;
  bool dx_;                // whether dx is computed
  Buffer<S> w_hh_, w_ih_;  // packed
  Buffer<O> state_;        // [B, ld_]: dpre of the last step of a block
  Buffer<O> connected_;    // for each thread: rows of dpre without those of resets
  Buffer<S> ordered_w_ih_; // W_ih in the order of the gradients, where it differs
  // Used if the elements of the caller's tensors are not C.
  Buffer<C> dw_ih_, dw_hh_, db_, db_hh_, dtable_;
  std::unique_ptr<Barrier[]> barriers_;        // one of each group
  std::unique_ptr<BackwardLeak<S, O>> leak_;   // nullptr: the units are not leaky
  std::unique_ptr<BackwardGates<S, O>> gates_; // nullptr: the units are not gated
};

} // namespace rnnfast
