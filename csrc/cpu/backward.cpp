// Back-propagation through time. It goes backward through blocks of a few time steps:
//
// 1. The recurrence computes dpre for the steps of the block. The rows are divided over the threads
//    as in forward.cpp.
// 2. While dpre is in cache, the products over all rows of the block follow: dx, for which the
//    threads divide the rows, and dW_ih, dW_hh and db, for which they divide the rows of W.
//
// All layers of a stack with one direction go through a block before the next block begins. Each
// hands its dx to the layer below in a buffer that is in cache.
//
// Every sum runs over the rows in the same order for any number of threads, so the results do not
// depend on that number.
#include "parallel.h"
#include "work.h"

namespace rnnfast {
namespace {

// A block has about this many bytes of dpre. So dpre stays in cache, and the work of a block is
// long compared with the barriers at its end.
constexpr int64_t kDpreBytes = 1 << 18;

// The steps of one direction in the order of computation, divided into blocks. A block may have at
// least kOuterRows rows, which OuterProducts adds up at a time: every addition costs a pass over
// the gradients of the weights.
class StepBlocks {
public:
  StepBlocks(const Schedule& schedule, int64_t row_bytes) : of_time_(schedule.count()) {
    const int64_t most = std::max(kOuterRows, kDpreBytes / row_bytes);
    int64_t rows = 0;
    for (int64_t i = 0; i < schedule.count(); ++i) {
      rows += schedule.rows_at(i);
      if (i == 0 || rows > most) {
        first_.push_back(i);
        rows = schedule.rows_at(i);
      }
      most_rows_ = std::max(most_rows_, rows);
      of_time_[schedule.time(i)] = static_cast<int64_t>(first_.size()) - 1;
    }
    first_.push_back(schedule.count());
  }

  // The number of blocks.
  int64_t count() const { return static_cast<int64_t>(first_.size()) - 1; }
  // Block k holds the computed steps [first(k), first(k + 1)). For k >= count() there are none.
  int64_t first(int64_t k) const { return first_[std::min(k, count())]; }
  // The block of time step t.
  int64_t of_time(int64_t t) const { return of_time_[t]; }
  // The most rows that a block has.
  int64_t most_rows() const { return most_rows_; }

private:
  std::vector<int64_t> first_, of_time_;
  int64_t most_rows_ = 0;
};

// One direction of one layer. The caller owns the buffers for a block. isa.h explains the types S
// and O.
template <class S, class O> class BackwardLayer {
  using C = Sum<S>;

public:
  // Allocates for up to `most_threads` threads. `hands_on`: dx goes to a buffer, which the layer
  // below reads.
  BackwardLayer(const Shape& shape, const Backward<S>& call, int most_threads, bool hands_on)
      : shape_(shape), call_(call), leak_(call.leak), kernels_(current_kernels<S, O>()),
        schedule_(shape, !call.reverse), ld_(row_stride<O>(shape.H)),
        carry_ld_(row_stride<C>(shape.H)), blocks_(schedule_, ld_ * int64_t(sizeof(O))),
        dx_(hands_on || call.dx.data != nullptr) {
    const int64_t H = shape.H, I = call.I;
    w_hh_ = allocate<S>(kernels_.packed_size(H, H));
    w_ih_ = allocate<S>(dx_ ? kernels_.packed_size(H, I) : 0);
    state_ = allocate<O>(shape.B * ld_);
    if constexpr (!std::is_same_v<S, C>) {
      // The gradients of 16-bit weights are summed over all blocks in float and rounded once.
      dw_ih_ = allocate<C>(call.dw_ih != nullptr ? H * I : 0);
      dw_hh_ = allocate<C>(call.dw_hh != nullptr ? H * H : 0);
      db_ = allocate<C>(call.db != nullptr ? H : 0);
      dtable_ = allocate<C>(call.dtable != nullptr ? I * H : 0);
    }
    if (leak_ != nullptr) {
      alpha_ = widened(leak_->alpha, H, round_up(H, kernels_.vector));
      carry_ = allocate<C>(shape.B * carry_ld_);
      if (leak_->current) {
        rest_ = allocate<S>(H);
        apply_to(nullptr, 1, rest_.get());
        if (call.h0 != nullptr) {
          first_r_ = allocate<S>(shape.B * H);
          apply_to(call.h0, shape.B, first_r_.get());
        }
      }
      if (leak_->dalpha != nullptr) {
        for (Buffer<S>& buffer : dstate_) {
          buffer = allocate<S>(blocks_.most_rows() * ld_);
        }
        dalpha_ = allocate<C>(2 * H);
      }
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

  // Pack this thread's part of the weights.
  void pack(int thread, int threads) {
    pack_part(kernels_, call_.w_hh, false, shape_.H, shape_.H, thread, threads, w_hh_.get());
    if (dx_) {
      pack_part(kernels_, call_.w_ih, false, shape_.H, call_.I, thread, threads, w_ih_.get());
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
    const Share share(schedule_, i0, i1, H, kernels_.panel, thread, threads);
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
        product.rows = end - begin, product.K = first ? 0 : H, product.N = H;
        product.col_begin = share.c0, product.col_end = share.c1, product.w = w_hh_.get();
        if (i == i0) {
          product.a = state_.get() + r * ld_, product.a_stride = ld_;
        } else if (!first) {
          set_left_factor(product, rows, dpre, schedule_.time(i - 1), r, share);
        }
        product.act = shape_.relu ? Activation::kReluGrad : Activation::kTanhGrad;
        if (dy != nullptr) {
          product.addend = rows.at(dy, dy_ld, t, r), product.addend_stride = rows.stride(dy_ld);
        } else if (call_.dy.data != nullptr) {
          product.addend = schedule_.at(call_.dy, t, r), product.addend_stride = call_.dy.row;
        }
        if (first && call_.dh_n != nullptr && leak_ == nullptr) {
          product.addend2 = call_.dh_n + r * H, product.addend2_stride = H;
        }
        product.h = schedule_.at(call_.h, t, r), product.h_stride = call_.h.row;
        product.operand = rows.at(dpre, ld_, t, r), product.operand_stride = rows.stride(ld_);
        LeakStep<S> leak_step;
        if (leak_ != nullptr) {
          leak_step = this->leak_step(r), product.leak = &leak_step;
          if (!leak_->current) {
            product.h = schedule_.at(leak_->saved, t, r), product.h_stride = leak_->saved.row;
          } else if (leak_->dstates.data != nullptr) {
            product.addend2 = schedule_.at(leak_->dstates, t, r);
            product.addend2_stride = leak_->dstates.row;
          }
          if (leak_->dalpha != nullptr) {
            product.out = rows.at(dstate_[k % 2].get(), ld_, t, r);
            product.out_stride = rows.stride(ld_);
          }
          if (first) {
            begin_carry(share, r, share.r0 + end);
          }
        }
        kernels_.fused_product(product);
      }
      barriers_[share.group].wait(share.members);
      if (leak_ != nullptr && schedule_.has_resets()) {
        for (int64_t r = share.r0; r < share.r0 + active; ++r) {
          if (schedule_.is_reset(t, r, call_.reverse)) {
            C* const carry = carry_.get() + r * carry_ld_;
            std::fill(carry + share.c0, carry + share.c1, C(0));
          }
        }
      }
      if (call_.dh0 != nullptr && after < active) { // this is the last step of some rows
        const int64_t r = share.r0 + after;
        FusedProduct<S, O> product{};
        product.rows = active - after, product.K = H, product.N = H;
        product.col_begin = share.c0, product.col_end = share.c1;
        set_left_factor(product, rows, dpre, t, r, share);
        product.w = w_hh_.get();
        product.act = Activation::kIdentity;
        product.out = call_.dh0 + r * H, product.out_stride = H;
        LeakStep<S> leak_step;
        if (leak_ != nullptr) {
          leak_step = this->leak_step(r), product.leak = &leak_step;
          if (!leak_->current) { // h is not used
            product.h = schedule_.at(call_.h, t, r), product.h_stride = call_.h.row;
          } else if (call_.h0 != nullptr) {
            product.h = first_r_.get() + r * H, product.h_stride = H;
          } else {
            product.h = rest_.get(), product.h_stride = 0;
          }
        }
        kernels_.fused_product(product);
      }
    }
    // The next block may use a different buffer for dpre and have different shares, so the dpre of
    // the last step is copied to where each of them finds it.
    for (int64_t b = 0; b < rnnfast::active(schedule_, share, i1 - 1); ++b) {
      const O* const last = rows.at(dpre, ld_, schedule_.time(i1 - 1), share.r0 + b);
      const int64_t end = share.c1 == H ? round_up(H, kernels_.vector) : share.c1;
      O* const to = state_.get() + (share.r0 + b) * ld_ + share.c0;
      if (schedule_.is_reset(schedule_.time(i1 - 1), share.r0 + b, call_.reverse)) {
        std::fill_n(to, end - share.c0, O{});
      } else {
        std::copy(last + share.c0, last + end, to);
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
      product.K = shape_.H, product.N = call_.I, product.col_end = call_.I;
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
    const int64_t m0 = H * thread / threads, m1 = H * (thread + 1) / threads;
    for (int64_t n0 = 0; n0 < rows.count(); n0 += kOuterRows) {
      const BlockRows::Row first = rows[n0];
      OuterProducts<S, O> o{};
      o.K = std::min(kOuterRows, rows.count() - n0), o.M = m1 - m0, o.add = k > 0 || n0 > 0;
      o.p = dpre + n0 * ld_ + m0, o.p_stride = ld_, o.q = q;
      const auto add_product = [&](int64_t N, C* out, const auto& right_row) {
        const S* right[kOuterRows];
        BlockRows::Row row = first;
        for (int64_t n = 0; n < o.K; ++n, row = rows.after(row)) {
          right[n] = right_row(row);
        }
        kernels_.pack_rows(right, o.K, N, q);
        o.N = N, o.out = out + m0 * N;
        kernels_.outer_products(o);
      };
      if (call_.dw_ih != nullptr) {
        add_product(I, sums(call_.dw_ih, dw_ih_),
                    [&](BlockRows::Row row) { return schedule_.at(call_.x, row.t, row.b); });
      }
      if (call_.dw_hh != nullptr) {
        add_product(H, sums(call_.dw_hh, dw_hh_), [&](BlockRows::Row row) {
          const S* const first = first_r_ != nullptr ? first_r_.get() : call_.h0;
          return previous(row, call_.h, first, rest_.get());
        });
      }
      if (call_.db != nullptr) {
        sum_columns(o, sums(call_.db, db_) + m0);
      }
      if (call_.dtable != nullptr) {
        table_gradient(rows, first, o, m0);
      }
      if (leak_ != nullptr) {
        leak_gradients(first, rows, o, dstate_[k % 2].get() + n0 * ld_ + m0, m0);
      }
    }
    if (leak_ != nullptr && leak_->dalpha != nullptr && k + 1 == blocks_.count()) {
      kernels_.narrow(dalpha_.get() + m0, m1 - m0, leak_->dalpha + m0);
    }
    if constexpr (!std::is_same_v<S, C>) {
      if (k + 1 == blocks_.count()) {
        const auto round = [&](const Buffer<C>& from, int64_t begin, int64_t count, S* to) {
          if (to != nullptr) {
            kernels_.narrow(from.get() + begin, count, to + begin);
          }
        };
        round(dw_ih_, m0 * I, (m1 - m0) * I, call_.dw_ih);
        round(dw_hh_, m0 * H, (m1 - m0) * H, call_.dw_hh);
        round(db_, m0, m1 - m0, call_.db);
        for (int64_t token = 0; token < I; ++token) {
          round(dtable_, token * H + m0, m1 - m0, call_.dtable);
        }
      }
    }
  }

private:
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
    product.a = copy, product.a_stride = ld_;
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

  // Write f of each of the states [count, H] to `r`. nullptr stands for zeros.
  void apply_to(const S* states, int64_t count, S* r) const {
    Buffer<C> row = allocate<C>(shape_.H);
    for (int64_t b = 0; b < count; ++b) {
      for (int64_t c = 0; c < shape_.H; ++c) {
        row[c] = apply(leak_->f, states != nullptr ? to_sum(states[b * shape_.H + c]) : C(0));
      }
      kernels_.narrow(row.get(), shape_.H, r + b * shape_.H);
    }
  }

  // What is done to the sums of a time step, from row r on.
  LeakStep<S> leak_step(int64_t r) const {
    LeakStep<S> step{};
    step.backward = true, step.current = leak_->current, step.f = leak_->f;
    step.alpha = alpha_.get();
    step.carry = carry_.get() + r * carry_ld_, step.carry_stride = carry_ld_;
    return step;
  }

  // Rows [r0, r1) begin with the gradient of their last state.
  void begin_carry(const Share& share, int64_t r0, int64_t r1) const {
    for (int64_t r = r0; r < r1; ++r) {
      const S* const dh_n = call_.dh_n != nullptr ? call_.dh_n + r * shape_.H : nullptr;
      C* const carry = carry_.get() + r * carry_ld_;
      for (int64_t c = share.c0; c < share.c1; ++c) {
        carry[c] = dh_n != nullptr ? to_sum(dh_n[c]) : C(0);
      }
    }
  }

  // Write the gradient of the noise and add up that of alpha, for the rows and columns of `o`.
  // `dstate` has the gradients of their states.
  void leak_gradients(BlockRows::Row row, const BlockRows& rows, const OuterProducts<S, O>& o,
                      const S* dstate, int64_t m0) const {
    const Sequence<const S>& states = leak_->current ? leak_->states : call_.h;
    C* const total = dalpha_.get() + m0;
    C* const sum = total + shape_.H; // of these rows alone, which is more accurate
    if (leak_->dalpha != nullptr) {
      std::fill_n(sum, o.M, C(0));
    }
    for (int64_t n = 0; n < o.K; ++n, row = rows.after(row)) {
      if (leak_->dnoise.data != nullptr) {
        S* const to = schedule_.at(leak_->dnoise, row.t, row.b) + m0;
        if constexpr (std::is_same_v<O, C>) {
          kernels_.narrow(o.p + n * o.p_stride, o.M, to);
        } else {
          std::copy_n(o.p + n * o.p_stride, o.M, to);
        }
      }
      if (leak_->dalpha != nullptr) {
        const S* const target = schedule_.at(leak_->saved, row.t, row.b) + m0;
        const S* const state = previous(row, states, call_.h0, nullptr);
        for (int64_t m = 0; m < o.M; ++m) {
          const C before = state != nullptr ? to_sum(state[m0 + m]) : C(0);
          sum[m] += to_sum(dstate[n * ld_ + m]) * (to_sum(target[m]) - before);
        }
      }
    }
    for (int64_t m = 0; leak_->dalpha != nullptr && m < o.M; ++m) {
      total[m] = o.add ? total[m] + sum[m] : sum[m];
    }
  }

  // Add each row of dpre to the row of dtable that belongs to its token.
  void table_gradient(const BlockRows& rows, BlockRows::Row row, const OuterProducts<S, O>& o,
                      int64_t m0) const {
    const int64_t H = shape_.H;
    C* const dtable = sums(call_.dtable, dtable_);
    for (int64_t token = 0; !o.add && token < call_.I; ++token) {
      std::fill_n(dtable + token * H + m0, o.M, C(0));
    }
    for (int64_t n = 0; n < o.K; ++n, row = rows.after(row)) {
      const O* const from = o.p + n * o.p_stride;
      C* const to = dtable + *schedule_.at(call_.tokens, row.t, row.b) * H + m0;
      for (int64_t m = 0; m < o.M; ++m) {
        to[m] += to_sum(from[m]);
      }
    }
  }

  const Shape& shape_;
  const Backward<S>& call_;
  const LeakBackward<S>* leak_;
  const VectorKernels<S, O>& kernels_;
  Schedule schedule_;
  int64_t ld_, carry_ld_; // elements from row to row in the buffers, and in carry_
  StepBlocks blocks_;
  bool dx_;                               // whether dx is computed
  Buffer<S> w_hh_, w_ih_;                 // packed
  Buffer<O> state_;                       // [B, ld_]: dpre of the last step of a block
  Buffer<O> connected_;                   // for each thread: rows of dpre without those of resets
  Buffer<C> dw_ih_, dw_hh_, db_, dtable_; // used if the elements of the caller's tensors are not C
  std::unique_ptr<Barrier[]> barriers_;   // one of each group
  // For leaky units.
  Buffer<C> alpha_;          // [H] in whole vectors
  Buffer<C> carry_;          // [B, carry_ld_]: the gradient that passes through the leak
  Buffer<S> rest_, first_r_; // for a current: f(0), [H], and f(h0), [B, H]
  Buffer<S> dstate_[2];      // the gradients of the states of a block; the two take turns
  Buffer<C> dalpha_;         // two rows of [H]
};

// What goes through each block together: either all layers of a stack with one direction, which
// hand dx from one to the next and of which the highest comes first, or both directions of one
// layer. `at_once` of them go through a block at the same time, and the rest one after the other.
template <class S, class O> class BackwardStack {
public:
  BackwardStack(const Shape& shape, const std::vector<const Backward<S>*>& calls, bool directions,
                int at_once, int most_threads)
      : directions_(directions), at_once_(at_once), ld_(row_stride<O>(shape.H)) {
    int64_t I = 0, rows = 0;
    for (const Backward<S>* call : calls) {
      const bool hands_on = !directions && call != calls.back();
      layers_.push_back(
          std::make_unique<BackwardLayer<S, O>>(shape, *call, most_threads, hands_on));
      I = std::max(I, call->dw_ih != nullptr ? call->I : 0);
      rows = std::max(rows, layers_.back()->blocks().most_rows());
    }
    for (int n = 0; n < at_once; ++n) {
      for (Buffer<O>& dpre : dpre_[n]) {
        dpre = allocate<O>(rows * ld_);
      }
    }
    q_size_ = kOuterRows * round_up(std::max(I, shape.H), 64 / sizeof(O));
    q_ = allocate<O>(most_threads * q_size_);
    handed_ = allocate<S>(!directions && calls.size() > 1 ? rows * ld_ : 0);
  }

  void run(int thread, int threads) {
    int64_t blocks = 0;
    for (const auto& layer : layers_) {
      layer->pack(thread, threads);
      blocks = std::max(blocks, layer->blocks().count());
    }
    all_.wait(threads);
    int turn = 0;
    for (int64_t k = 0; k < blocks; ++k) {
      for (size_t first = 0; first < layers_.size(); first += at_once_, turn = 1 - turn) {
        recur(k, first, turn, thread, threads);
        if (all_.wait_and_decide(threads)) { // one thread does all the rest
          if (thread > 0) {
            return;
          }
          threads = 1;
        }
        products(k, first, turn, thread, threads);
      }
    }
  }

private:
  // The recurrence of the layers [first, first + at_once_) through block k. A thread that has
  // finished its products begins the next recurrence while other threads still read dpre, so there
  // are two buffers for dpre, which take turns.
  void recur(int64_t k, size_t first, int turn, int thread, int threads) {
    const Team team(thread, threads, at_once_);
    const S* const dy = !directions_ && first > 0 ? handed_.get() : nullptr;
    for (int n = 0; n < at_once_; ++n) {
      if (threads < at_once_ || n == team.index) {
        layers_[first + n]->recur(k, dy, ld_, dpre_[n][turn].get(), team.thread, team.threads);
      }
    }
  }

  // The products of the same layers over block k.
  void products(int64_t k, size_t first, int turn, int thread, int threads) {
    for (int n = 0; n < at_once_; ++n) {
      const BackwardLayer<S, O>& layer = *layers_[first + n];
      if (!layer.wants_dx()) {
        continue;
      }
      if (n > 0) {
        all_.wait(threads); // the other direction may have written the same rows of dx
      }
      S* const handed = !directions_ && first + 1 < layers_.size() ? handed_.get() : nullptr;
      const BackwardLayer<S, O>* const opposite =
          directions_ && layers_.size() == 2 ? layers_[1 - (first + n)].get() : nullptr;
      layer.input_gradient(k, dpre_[n][turn].get(), handed, ld_, opposite, first + n > 0, thread,
                           threads);
    }
    if (!directions_ && layers_.size() > 1) {
      all_.wait(threads); // the dx that is handed on is complete
    }
    O* const q = q_.get() + thread * q_size_;
    for (int n = 0; n < at_once_; ++n) {
      layers_[first + n]->weight_gradients(k, dpre_[n][turn].get(), q, thread, threads);
    }
  }

  bool directions_;
  int at_once_;
  int64_t ld_; // elements from row to row of dpre and of the dx that is handed on
  std::vector<std::unique_ptr<BackwardLayer<S, O>>> layers_;
  Buffer<O> dpre_[2][2]; // for each layer at once, two that take turns: [rows of a block, ld_]
  Buffer<O> q_;          // for each thread: a packed right factor, [kOuterRows, I or H]
  int64_t q_size_;       // elements of q_ for one thread
  Buffer<S> handed_;     // the dx that is handed on: [rows of a block, ld_]
  Barrier all_;
};

// Return the number of multiply-adds of a call.
template <class S> double multiply_adds(const Shape& shape, const Backward<S>& call, bool dx) {
  const Schedule schedule(shape, call.reverse);
  const int64_t I = (dx ? call.I : 0) + (call.dw_ih != nullptr ? call.I : 0);
  const int64_t H = shape.H + (call.dw_hh != nullptr ? shape.H : 0);
  return double(schedule.total()) * shape.H * double(H + I);
}

template <class S, class O = S>
void backward_any(const Shape& shape, int64_t layers, int64_t directions,
                  const Backward<S>* stack) {
  double work = 0;
  for (int64_t n = 0; n < layers * directions; ++n) {
    if (stack[n].tokens.data != nullptr) {
      check_tokens(Schedule(shape, stack[n].reverse), stack[n].tokens, stack[n].I);
    }
    work += multiply_adds(shape, stack[n], stack[n].dx.data != nullptr || n >= directions);
  }
  const int at_once =
      directions > 1 ? static_cast<int>(rnnfast::at_once<S>(shape, layers, directions)) : 1;
  const int wanted = threads_for(shape.threads, work * at_once / double(layers * directions));
  const auto run = [&](const std::vector<const Backward<S>*>& calls) {
    BackwardStack<S, O> stack_work(shape, calls, directions > 1, at_once, wanted);
    parallel(wanted, [&](int thread, int threads) { stack_work.run(thread, threads); });
  };
  if (directions == 1) {
    std::vector<const Backward<S>*> calls;
    for (int64_t layer = layers - 1; layer >= 0; --layer) {
      calls.push_back(stack + layer);
    }
    run(calls);
  } else {
    for (int64_t layer = layers - 1; layer >= 0; --layer) {
      run({stack + 2 * layer, stack + 2 * layer + 1});
    }
  }
}

} // namespace

void backward(const Shape& shape, int64_t layers, int64_t directions,
              const Backward<float>* stack) {
  backward_any(shape, layers, directions, stack);
}
void backward(const Shape& shape, int64_t layers, int64_t directions,
              const Backward<double>* stack) {
  backward_any(shape, layers, directions, stack);
}
void backward(const Shape& shape, int64_t layers, int64_t directions,
              const Backward<bfloat16>* stack) {
  if (current_isa().bf16_pairs != nullptr) {
    backward_any(shape, layers, directions, stack);
  } else {
    backward_any<bfloat16, float>(shape, layers, directions, stack);
  }
}
void backward(const Shape& shape, int64_t layers, int64_t directions,
              const Backward<float16>* stack) {
  backward_any<float16, float>(shape, layers, directions, stack);
}

} // namespace rnnfast
