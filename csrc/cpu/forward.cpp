// The recurrence forward in time. The arithmetic of a step is in vector/tile-inl.h.
//
// The rows of the batch are divided over groups of threads. Rows are independent, so groups never
// wait for one another. If there are fewer rows than the threads need, a group has several members,
// which divide the hidden columns of their rows and meet at a barrier after each step, because each
// needs the whole of h_t. In that case the two directions of a layer also run at the same time, and
// so do several layers, each a block of steps behind the layer below.
//
// The hidden state lies in two buffers that alternate from step to step (`state_`), not in the
// caller's tensor. The rows of the buffers are padded, so that they fall into different cache sets
// whatever the caller's strides are, and they hold h0 before the first step of a row.
#include "gates.h"
#include "parallel.h"
#include "work.h"

namespace rnnfast {
namespace {

// The input projection W_ih x + b is computed for this many rows at a time, ahead of the
// recurrence. So many rows use each panel of W_ih often enough while it is in cache, and so few
// that the result is still in cache when the recurrence reads it.
constexpr int64_t kBlockRows = 128;
// A row of gated units is longer, so that a block has fewer rows: as many as have about this many
// bytes. With an LSTM of 512 units the forward pass is 5% faster than with 128 rows.
constexpr int64_t kBlockBytes = 1 << 18, kGatedRows = 32;
// If layers run at the same time, each is a block behind the layer below. A block then has 1/16 of
// the rows of the sequence, so that a layer waits for its first block during a small part of T
// only, but at least 16 rows and at most kBlockRows.
constexpr int64_t kPipelineBlocks = 16, kPipelineRows = 16;
// A single time step of at most this many rows reads the weights as they are, because packing them
// would take longer than the products. With 256 inputs and units in float32 a step of one row takes
// 9 us instead of 23 us.
constexpr int64_t kUnpackedRows = 4;

// One direction of one layer, computed by a team of threads. isa.h explains the types S and O.
template <class S, class O> class ForwardLayer {
  using C = Sum<S>;

public:
  // Allocates buffers for a team of up to `most_threads` threads. `below` is the layer that writes
  // x while this layer runs; nullptr: x is complete.
  ForwardLayer(const Shape& shape, const Forward<S>& call, int most_threads, bool pipelined,
               const ForwardLayer* below)
      : shape_(shape), call_(call), leak_(call.leak), gates_(call.gates), below_(below),
        kernels_(current_kernels<S, O>()), schedule_(shape, call.reverse),
        most_threads_(most_threads), layout_{shape.H, gates_in(call), kernels_.panel},
        packs_(shape.T > 1 || shape.B > kUnpackedRows || kernels_.unpacked_product == nullptr),
        I_(call.tokens.data == nullptr ? call.I : 0),
        block_rows_(pipelined
                        ? std::clamp(shape.T * shape.B / kPipelineBlocks, kPipelineRows, kBlockRows)
                        : most_block_rows()),
        x_ld_(row_stride<O>(I_)), ld_(row_stride<O>(shape.H)),
        pre_ld_(row_stride<C>(layout_.width())), carry_ld_(row_stride<C>(shape.H)),
        rest_(leak_ != nullptr && leak_->current ? apply(leak_->f, C(0)) : C(0)) {
    const int64_t B = shape.B, H = shape.H, width = round_up(H, kernels_.vector);
    // Each thread has a block of its own, also the members of a group, which have the same rows.
    // The members of one group multiplied by B are at most B + most_threads * 2 * kGroupRows.
    const int64_t rows = most_threads * (kBlockRows + 2 * kGroupRows) + B;
    if (packs_) {
      w_ih_ = allocate<S>(kernels_.packed_size(I_, layout_.width()));
      w_hh_ = allocate<S>(kernels_.packed_size(H, layout_.width()));
    }
    x_blocks_ = allocate<O>(rows * x_ld_);
    pre_blocks_ = allocate<C>(rows * pre_ld_);
    for (Buffer<O>& state : state_) {
      state = allocate<O>(B * ld_);
    }
    if (leak_ != nullptr || gates_ != nullptr) {
      carry_ = allocate<C>(B * carry_ld_);
    }
    if (leak_ != nullptr) {
      alpha_ = widened(leak_->alpha, H, width);
      if (leak_->noise_scale != nullptr) {
        noise_scale_ = widened(leak_->noise_scale, H, width);
      }
    }
    barriers_.reset(new Barrier[most_threads + 1]);
    done_.reset(new Progress[most_threads]);
    if (gates_ != nullptr) {
      bias_ = gate_biases(layout_, gates_->cell, call.b_ih, call.b_hh);
      if (gates_->cell == GatedCell::kGru) {
        const S* const b_hn = call.b_hh != nullptr ? call.b_hh + 2 * H : nullptr;
        recurrent_bias_ = widened(b_hn, b_hn != nullptr ? H : 0, width);
      }
      if (packs_) {
        last_panel_ = allocate<S>(layout_.last_size(std::max(I_, H)));
      }
    } else {
      bias_ = allocate<C>(width);
      sum_biases(call.b_ih, call.b_hh, H, width, bias_.get());
    }
  }

  // The work of one thread of the team.
  void run(int thread, int threads) {
    const int64_t B = shape_.B, H = shape_.H;
    for (int other = thread + threads; other < most_threads_; other += threads) {
      // The runtime has not granted this thread, so the layer above must not wait for it.
      done_[other].set(shape_.T);
    }
    if (packs_ && gates_ != nullptr) {
      S* const last = last_panel_.get();
      pack_gates(kernels_, call_.w_ih, layout_, I_, thread, threads, last, w_ih_.get());
      pack_gates(kernels_, call_.w_hh, layout_, H, thread, threads, last, w_hh_.get());
    } else if (packs_) {
      pack_part(kernels_, call_.w_ih, true, I_, H, thread, threads, w_ih_.get());
      pack_part(kernels_, call_.w_hh, true, H, H, thread, threads, w_hh_.get());
    }
    for (int64_t r = thread; r < B; r += threads) {
      begin_row(r);
    }
    barriers_[0].wait(threads);
    const Share share(schedule_, 0, shape_.T, H, layout_.gates, kernels_.panel, thread, threads);
    if (share.r0 < share.r1 && share.c0 < share.c1) {
      int64_t before = 0; // the rows of the blocks of the threads with lower numbers
      for (int other = 0; other < thread; ++other) {
        const Share theirs(schedule_, 0, shape_.T, H, layout_.gates, kernels_.panel, other,
                           threads);
        before += std::max(kBlockRows, theirs.r1 - theirs.r0);
      }
      recur(share, x_blocks_.get() + before * x_ld_, pre_blocks_.get() + before * pre_ld_,
            done_[thread]);
    }
    done_[thread].set(shape_.T); // also if this thread had no share
  }

private:
  // The rows of a block, unless layers run at the same time.
  int64_t most_block_rows() const {
    const int64_t bytes = layout_.width() * int64_t(sizeof(C));
    return gates_ == nullptr ? kBlockRows : std::clamp(kBlockBytes / bytes, kGatedRows, kBlockRows);
  }

  // Write the state before the first step of row r to both buffers.
  void begin_row(int64_t r) const {
    const int64_t H = shape_.H;
    const bool is_reset = schedule_.is_reset(schedule_.time(0), r, call_.reverse);
    const S* const h0 = call_.h0 != nullptr && !is_reset ? call_.h0 + r * H : nullptr;
    C* const carry = carry_ != nullptr ? carry_.get() + r * carry_ld_ : nullptr;
    const S* first = h0; // what is carried
    if (has_c()) {
      first = gates_->c0 != nullptr && !is_reset ? gates_->c0 + r * H : nullptr;
    }
    for (int64_t c = 0; carry != nullptr && c < carry_ld_; ++c) {
      carry[c] = first != nullptr && c < H ? to_sum(first[c]) : C(0);
    }
    for (const Buffer<O>& buffer : state_) {
      O* const state = buffer.get() + r * ld_;
      if (h0 == nullptr) {
        // The padding is filled too: a product of pairs reads one element after H if H is odd.
        std::fill_n(state, ld_, O{});
        std::fill_n(state, H, from_sum<O>(rest_));
      } else if (leak_ != nullptr && leak_->current) {
        std::fill_n(state, ld_, O{});
        for (int64_t c = 0; c < H; ++c) {
          state[c] = from_sum<O>(apply(leak_->f, carry[c]));
        }
      } else {
        kernels_.widen(h0, H, state);
      }
    }
  }

  // Compute W_ih x + b_ih + b_hh for the rows of `share` in the steps [i0, i1) and store them one
  // after another in `pre`. `x` is the buffer of this thread for the inputs.
  void project(const Share& share, int64_t i0, int64_t i1, O* x, C* pre) const {
    if (below_ != nullptr) {
      for (int other = 0; other < below_->most_threads_; ++other) {
        below_->done_[other].wait_for(i1);
      }
    }
    int64_t n = 0;
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t t = schedule_.time(i);
      for (int64_t r = share.r0; r < share.r0 + active(schedule_, share, i); ++r, ++n) {
        if (call_.tokens.data == nullptr) {
          kernels_.widen(schedule_.at(call_.x, t, r), I_, x + n * x_ld_);
          continue;
        }
        const S* row = call_.table + *schedule_.at(call_.tokens, t, r) * layout_.gates * shape_.H;
        for (int64_t g = 0; g < layout_.gates; ++g, row += shape_.H) {
          add_bias(row, g, share, pre + n * pre_ld_);
        }
      }
    }
    if (call_.tokens.data == nullptr) {
      FusedProduct<S, O> product{};
      const Columns columns = layout_.columns(share.c0, share.c1);
      product.rows = n, product.K = I_, product.N = layout_.width();
      product.col_begin = columns.begin, product.col_end = columns.end;
      product.a = x, product.a_stride = x_ld_, product.w = packs_ ? w_ih_.get() : call_.w_ih;
      product.act = Activation::kIdentity;
      product.sums_before = bias_.get(), product.sums_before_stride = 0;
      product.sums = pre, product.sums_stride = pre_ld_;
      if (packs_ || gates_ == nullptr) {
        multiply(product);
      } else {
        multiply_gates(product, share);
      }
    }
    if (noise_scale_ != nullptr) {
      for (int64_t i = i0; i < i1; ++i) {
        const int64_t number = schedule_.number(schedule_.time(i), share.r0);
        for (int64_t r = 0; r < active(schedule_, share, i); ++r, pre += pre_ld_) {
          kernels_.add_normal(leak_->seed, number + r, share.c0, share.c1, shape_.H,
                              noise_scale_.get(), pre);
        }
      }
    }
  }

  // Write gate g of `row`, a row of `table`, plus the bias to `pre`, for the units of `share`.
  void add_bias(const S* row, int64_t g, const Share& share, C* pre) const {
    for (int64_t c0 = share.c0; c0 < share.c1; c0 += layout_.panel) {
      const int64_t place = layout_.place(g, c0), count = std::min(layout_.panel, share.c1 - c0);
      for (int64_t c = 0; c < count; ++c) {
        pre[place + c] = to_sum(row[c0 + c]) + bias_[place + c];
      }
      std::fill(pre + place + count, pre + place + layout_.columns_at(c0), C(0));
    }
  }

  // Run a product whose right factor is one of the matrices below.
  void multiply(const FusedProduct<S, O>& product) const {
    (packs_ ? kernels_.fused_product : kernels_.unpacked_product)(product);
  }

  // Run a product with W_ih of all gates, which is not packed. The columns of `product` are those
  // of the layout, and the rows of W_ih are not in that order.
  void multiply_gates(FusedProduct<S, O> product, const Share& share) const {
    C* const sums = product.sums;
    product.col_begin = 0;
    for (int64_t c = share.c0; c < share.c1; c += layout_.panel) {
      product.N = product.col_end = std::min(layout_.panel, share.c1 - c);
      for (int64_t g = 0; g < layout_.gates; ++g) {
        product.w = call_.w_ih + (g * shape_.H + c) * I_;
        product.sums_before = bias_.get() + layout_.place(g, c);
        product.sums = sums + layout_.place(g, c);
        kernels_.unpacked_product(product);
      }
    }
  }

  // Before the i-th computed step, clear this thread's columns of the states that are reset.
  // `state` holds the rows of `share`.
  void reset_rows(const Share& share, int64_t i, O* state) const {
    for (int64_t r = 0; r < active(schedule_, share, i); ++r) {
      if (schedule_.is_reset(schedule_.time(i), share.r0 + r, call_.reverse)) {
        std::fill(state + r * ld_ + share.c0, state + r * ld_ + share.c1, from_sum<O>(rest_));
        if (carry_ != nullptr) {
          C* const carry = carry_.get() + (share.r0 + r) * carry_ld_;
          std::fill(carry + share.c0, carry + share.c1, C(0));
        }
      }
    }
  }

  // What is done to the sums of the rows of `share` at time step t by leaky units.
  LeakStep<S> leak_step(const Share& share, int64_t t) const {
    LeakStep<S> step{};
    step.current = leak_->current, step.f = leak_->f, step.alpha = alpha_.get();
    step.carry = carry_.get() + share.r0 * carry_ld_, step.carry_stride = carry_ld_;
    if (leak_->states.data != nullptr) {
      step.states = schedule_.at(leak_->states, t, share.r0);
      step.states_stride = leak_->states.row;
    }
    if (leak_->saved.data != nullptr) {
      step.saved = schedule_.at(leak_->saved, t, share.r0);
      step.saved_stride = leak_->saved.row;
    }
    return step;
  }

  // What is done to the sums of the rows of `share` at time step t by gated units.
  GateStep<S> gate_step(const Share& share, int64_t t) const {
    GateStep<S> step{};
    step.cell = gates_->cell, step.bias = recurrent_bias_.get();
    step.carry = carry_.get() + share.r0 * carry_ld_, step.carry_stride = carry_ld_;
    if (gates_->saved.data != nullptr) {
      step.saved = schedule_.at(gates_->saved, t, share.r0);
      step.saved_stride = gates_->saved.row;
    }
    return step;
  }

  // Write this thread's columns of the last state of row r, whose last output is `out`. A
  // state that is carried has not been rounded to S. What an LSTM carries is c, so that its h comes
  // from `out`.
  void finish_row(const Share& share, int64_t r, const S* out) const {
    const int64_t at = r * shape_.H + share.c0, count = share.c1 - share.c0;
    const C* const carry = carry_ != nullptr ? carry_.get() + r * carry_ld_ + share.c0 : nullptr;
    if (call_.h_n != nullptr && (carry == nullptr || has_c())) {
      std::copy_n(out + share.c0, count, call_.h_n + at);
    } else if (call_.h_n != nullptr) {
      kernels_.narrow(carry, count, call_.h_n + at);
    }
    if (has_c() && gates_->c_n != nullptr) {
      kernels_.narrow(carry, count, gates_->c_n + at);
    }
  }

  // Whether the units have a state c beside h.
  bool has_c() const { return gates_ != nullptr && gates_->cell == GatedCell::kLstm; }

  // Take the rows of `share` through all steps. `x` and `pre` are the buffers of this thread for a
  // block.
  void recur(Share share, O* x, C* pre, Progress& done) {
    const int64_t H = shape_.H, T_ = shape_.T;
    const int64_t block = std::max<int64_t>(1, block_rows_ / (share.r1 - share.r0));
    bool alone = false;
    for (int64_t i0 = 0; i0 < T_; i0 += block) {
      if (alone) { // the first member takes over the columns of the whole group
        if (share.member > 0) {
          return;
        }
        share.members = 1, share.c0 = 0, share.c1 = H;
        alone = false;
      }
      const int64_t i1 = std::min(T_, i0 + block);
      project(share, i0, i1, x, pre);
      const C* before = pre;
      for (int64_t i = i0; i < i1; ++i) {
        const int64_t rows = active(schedule_, share, i), t = schedule_.time(i);
        if (rows == 0) {
          continue;
        }
        O* const now = state_[i % 2].get() + share.r0 * ld_;
        O* const next = state_[(i + 1) % 2].get() + share.r0 * ld_;
        FusedProduct<S, O> product{};
        product.rows = rows, product.N = H;
        product.K = i == 0 && call_.h0 == nullptr && rest_ == C(0) ? 0 : H;
        product.col_begin = share.c0, product.col_end = share.c1;
        product.a = now, product.a_stride = ld_, product.w = packs_ ? w_hh_.get() : call_.w_hh;
        product.act = shape_.relu ? Activation::kRelu : Activation::kTanh;
        product.sums_before = before, product.sums_before_stride = pre_ld_;
        product.operand = next, product.operand_stride = ld_;
        product.out = schedule_.at(call_.h, t, share.r0), product.out_stride = call_.h.row;
        LeakStep<S> leak_step;
        if (leak_ != nullptr) {
          leak_step = this->leak_step(share, t), product.leak = &leak_step;
          if (leak_->noise.data != nullptr) {
            product.addend = schedule_.at(leak_->noise, t, share.r0);
            product.addend_stride = leak_->noise.row;
          }
        }
        GateStep<S> gate_step;
        if (gates_ != nullptr) {
          gate_step = this->gate_step(share, t), product.gates = &gate_step;
        }
        multiply(product);
        for (int64_t r = active(schedule_, share, i + 1); r < rows; ++r) {
          finish_row(share, share.r0 + r, product.out + r * product.out_stride);
        }
        if (schedule_.has_resets() && i + 1 < T_) {
          reset_rows(share, i + 1, next);
        }
        Barrier& barrier = barriers_[1 + share.group];
        if (i + 1 == i1) {
          alone = barrier.wait_and_decide(share.members);
        } else {
          barrier.wait(share.members);
        }
        before += rows * pre_ld_;
      }
      done.set(i1);
    }
  }

  const Shape& shape_;
  const Forward<S>& call_;
  const Leak<S>* leak_;
  const Gates<S>* gates_;
  const ForwardLayer* below_;
  const VectorKernels<S, O>& kernels_;
  Schedule schedule_;
  int most_threads_;
  UnitLayout layout_;
  bool packs_;         // whether the weights are packed
  int64_t I_;          // the depth of the input projection; 0 with tokens
  int64_t block_rows_; // the rows of a block
  // Elements from row to row in x_blocks_, state_, pre_blocks_ and carry_.
  int64_t x_ld_, ld_, pre_ld_, carry_ld_;
  C rest_;                   // the element of h that belongs to the state zero
  Buffer<S> w_ih_, w_hh_;    // packed, if packs_
  Buffer<C> bias_;           // b_ih + b_hh
  Buffer<C> recurrent_bias_; // for a GRU: b_hn
  Buffer<S> last_panel_;     // for pack_gates
  Buffer<O> state_[2];       // [B, ld_], h before and after a step
  Buffer<C> carry_; // for leaky and gated units: the state, or c of an LSTM, [B, carry_ld_]
  Buffer<C> alpha_, noise_scale_;       // for leaky units: [H] in whole vectors
  Buffer<O> x_blocks_;                  // for each thread: the inputs of a block
  Buffer<C> pre_blocks_;                // for each thread: the input projections of a block
  std::unique_ptr<Barrier[]> barriers_; // one of the team, then one of each group
  std::unique_ptr<Progress[]> done_;    // for each thread: the steps that it has done
};

template <class S, class O = S>
void forward_any(const Shape& shape, int64_t layers, int64_t directions, const Forward<S>* stack) {
  double work = 0; // in multiply-adds
  for (int64_t n = 0; n < layers * directions; ++n) {
    const Schedule schedule(shape, stack[n].reverse);
    if (stack[n].tokens.data != nullptr) {
      check_tokens(schedule, stack[n].tokens, stack[n].I);
    }
    const int64_t I = stack[n].tokens.data == nullptr ? stack[n].I : 0;
    work += double(schedule.total()) * gates_in(stack[n]) * shape.H * (shape.H + I);
  }
  const int64_t width = at_once<S>(shape, gates_in(stack[0]), layers, directions);
  const int wanted = threads_for(shape.threads, work * double(width) / double(layers * directions));
  const bool pipelined = directions == 1 && width > 1;
  for (int64_t first = 0; first < layers * directions; first += width) {
    const int teams = static_cast<int>(std::min(width, layers * directions - first));
    std::vector<std::unique_ptr<ForwardLayer<S, O>>> wave;
    for (int n = 0; n < teams; ++n) {
      wave.push_back(
          std::make_unique<ForwardLayer<S, O>>(shape, stack[first + n], wanted, pipelined,
                                               pipelined && n > 0 ? wave.back().get() : nullptr));
    }
    parallel(wanted, [&](int thread, int threads) {
      const Team team(thread, threads, teams);
      if (threads >= teams) {
        wave[team.index]->run(team.thread, team.threads);
        return;
      }
      for (const auto& layer : wave) {
        layer->run(thread, threads);
      }
    });
  }
}

} // namespace

void forward(const Shape& shape, int64_t layers, int64_t directions, const Forward<float>* stack) {
  forward_any(shape, layers, directions, stack);
}
void forward(const Shape& shape, int64_t layers, int64_t directions, const Forward<double>* stack) {
  forward_any(shape, layers, directions, stack);
}
void forward(const Shape& shape, int64_t layers, int64_t directions,
             const Forward<bfloat16>* stack) {
  if (current_isa().bf16_pairs != nullptr) {
    forward_any(shape, layers, directions, stack);
  } else {
    forward_any<bfloat16, float>(shape, layers, directions, stack);
  }
}
void forward(const Shape& shape, int64_t layers, int64_t directions,
             const Forward<float16>* stack) {
  forward_any<float16, float>(shape, layers, directions, stack);
}

} // namespace rnnfast
