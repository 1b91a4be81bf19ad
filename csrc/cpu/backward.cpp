// Back-propagation through time. First the recurrence, backward in time, down to dpre: shared out
// over threads and buffers as forward.cpp says. Then the products over all rows of all steps, which
// do not depend on one another: dx by rows, dW_ih, dW_hh and db by rows of W. Every sum runs over
// the rows in the same order, whatever the number of threads.
#include "parallel.h"
#include "work.h"

namespace rnnfast {
namespace {

// Rows of the products taken at a time: as many as stay in a core's cache beside one another, for
// each block costs a pass over the sums.
constexpr int64_t kProductRows = 256;

// Rows of dpre that db adds up before they join the total.
constexpr int64_t kSumRows = 32;

// One direction of one layer.
template <class T> class Layer {
public:
  // Buffers for `team` threads at most. `add_dx`: to what another direction left in dx.
  Layer(const Shape& shape, const Backward<T>& call, int team, bool add_dx)
      : shape_(shape), call_(call), add_dx_(add_dx), kernels_(rnnfast::kernels<T>()),
        steps_(shape, !call.reverse), rows_(shape, steps_, call.h.step < call.h.row),
        dx_(call.dx.data != nullptr),
        dw_(call.dw_ih != nullptr || call.dw_hh != nullptr || call.db != nullptr),
        ld_(row_stride<T>(shape.H)),
        q_ld_(row_stride<T>(call.dw_ih != nullptr ? std::max(shape.H, call.I) : shape.H)) {
    const int64_t B = shape.B, H = shape.H, I = call.I;
    w_hh_ = allocate<T>(H * round_up(H, kernels_.vector));
    w_ih_ = allocate<T>(dx_ ? H * round_up(I, kernels_.vector) : 0);
    // Up to a vector past its last row is read, though not used.
    dpre_buffer_ = allocate<T>(steps_.total() * ld_);
    dpre_ = rows_.compact(dpre_buffer_.get(), ld_);
    for (Buffer<T>& state : state_) {
      state = allocate<T>(B * ld_);
    }
    q_ = allocate<T>(dw_ ? team * kProductRows * q_ld_ : 0);
    barriers_.reset(new Barrier[team + 1]);
  }

  // Down to dpre and dh0.
  void recur(int thread, int threads) {
    const int64_t H = shape_.H;
    pack_part(kernels_, call_.w_hh, false, H, H, thread, threads, w_hh_.get());
    if (dx_) {
      pack_part(kernels_, call_.w_ih, false, H, call_.I, thread, threads, w_ih_.get());
    }
    barriers_[0].wait(threads);
    const Share share(steps_, shape_.B, H, kernels_.panel, thread, threads);
    if (share.r0 < share.r1 && share.c0 < share.c1) {
      recur(share);
    }
  }

  // The products; dpre must be complete.
  void sum_up(int thread, int threads) {
    const int64_t H = shape_.H, total = steps_.total();
    const int64_t m0 = H * thread / threads, m1 = H * (thread + 1) / threads;
    if (dx_) {
      input_gradient(total * thread / threads, total * (thread + 1) / threads);
    }
    if (dw_) {
      weight_gradients(m0, m1, q_.get() + thread * kProductRows * q_ld_);
    }
    if (call_.dtable != nullptr) {
      table_gradient(m0, m1);
    }
  }

private:
  void recur(const Share& share) {
    for (int64_t i = 0; i < shape_.T; ++i) {
      const int64_t rows = active(steps_, share, i), after = active(steps_, share, i + 1);
      if (rows == 0) {
        continue;
      }
      // Rows at their first step have no product yet, and dh_n in its place.
      const int64_t continuing = std::min(active(steps_, share, i - 1), rows);
      step(share, i, 0, continuing, false);
      step(share, i, continuing, rows, true);
      barriers_[1 + share.group].wait(share.members);
      if (call_.dh0 != nullptr && after < rows) { // rows at their last step
        const int64_t r = share.r0 + after;
        Step<T> s{};
        s.rows = rows - after, s.K = shape_.H, s.N = shape_.H;
        s.col_begin = share.c0, s.col_end = share.c1;
        s.a = state_[(i + 1) % 2].get() + r * ld_, s.a_stride = ld_, s.w = w_hh_.get();
        s.act = Activation::kIdentity;
        s.out = call_.dh0 + r * shape_.H, s.out_stride = shape_.H;
        kernels_.step(s);
      }
    }
  }

  // Rows [begin, end) of the share at computed step i.
  void step(const Share& share, int64_t i, int64_t begin, int64_t end, bool first) {
    if (begin == end) {
      return;
    }
    const int64_t H = shape_.H, t = steps_.time(i), r = share.r0 + begin;
    Step<T> s{};
    s.rows = end - begin, s.N = H;
    s.K = first ? 0 : H;
    s.col_begin = share.c0, s.col_end = share.c1;
    s.a = state_[i % 2].get() + r * ld_, s.a_stride = ld_, s.w = w_hh_.get();
    s.act = shape_.relu ? Activation::kReluGrad : Activation::kTanhGrad;
    if (call_.dy.data != nullptr) {
      s.addend = steps_.at(call_.dy, t, r), s.addend_stride = call_.dy.row;
    }
    if (first && call_.dh_n != nullptr) {
      s.addend2 = call_.dh_n + r * H, s.addend2_stride = H;
    }
    s.h = steps_.at(call_.h, t, r), s.h_stride = call_.h.row;
    s.padded = state_[(i + 1) % 2].get() + r * ld_, s.padded_stride = ld_;
    s.out = steps_.at(dpre_, t, r), s.out_stride = dpre_.row;
    kernels_.step(s);
  }

  // dx of rows [begin, end): dpre W_ih.
  void input_gradient(int64_t begin, int64_t end) const {
    for (int64_t n = begin; n < end;) {
      // As many rows as lie evenly spaced in dx: all, unless the caller's strides are odd.
      Rows::Row row = rows_[n];
      T* const out = steps_.at(call_.dx, row.t, row.b);
      int64_t count = 0, stride = 0;
      for (; n + count < end && count < kProductRows; ++count, row = rows_.after(row)) {
        const int64_t ahead = steps_.at(call_.dx, row.t, row.b) - out;
        stride = count == 1 ? ahead : stride;
        if (ahead != count * stride) {
          break;
        }
      }
      Step<T> s{};
      s.rows = count, s.K = shape_.H, s.N = call_.I;
      s.col_begin = 0, s.col_end = call_.I;
      s.a = dpre_buffer_.get() + n * ld_, s.a_stride = ld_, s.w = w_ih_.get();
      s.act = Activation::kIdentity;
      s.addend = add_dx_ ? out : nullptr, s.addend_stride = stride;
      s.out = out, s.out_stride = stride;
      kernels_.step(s);
      n += count;
    }
  }

  // Rows [m0, m1) of dW_ih and dW_hh and elements [m0, m1) of db. `q` is a block of kProductRows
  // compact rows.
  void weight_gradients(int64_t m0, int64_t m1, T* q) const {
    const int64_t H = shape_.H, I = call_.I;
    for (int64_t n0 = 0; n0 < steps_.total(); n0 += kProductRows) {
      const int64_t count = std::min(kProductRows, steps_.total() - n0);
      const Rows::Row first = rows_[n0];
      Outer<T> o{};
      o.K = count, o.M = m1 - m0, o.add = n0 != 0;
      o.p = dpre_buffer_.get() + n0 * ld_ + m0, o.p_stride = ld_, o.q = q, o.q_stride = q_ld_;
      if (call_.db != nullptr) {
        bias_gradient(o, call_.db + m0, q);
      }
      if (call_.dw_ih != nullptr) {
        Rows::Row row = first;
        for (int64_t k = 0; k < count; ++k, row = rows_.after(row)) {
          std::copy_n(steps_.at(call_.x, row.t, row.b), I, q + k * q_ld_);
        }
        o.N = I, o.out = call_.dw_ih + m0 * I, o.out_stride = I;
        kernels_.outer(o);
      }
      if (call_.dw_hh != nullptr) {
        Rows::Row row = first;
        for (int64_t k = 0; k < count; ++k, row = rows_.after(row)) {
          if (const T* const h = previous(row)) {
            std::copy_n(h, H, q + k * q_ld_);
          } else {
            std::fill_n(q + k * q_ld_, H, T(0));
          }
        }
        o.N = H, o.out = call_.dw_hh + m0 * H, o.out_stride = H;
        kernels_.outer(o);
      }
    }
  }

  // The state before this row's step; nullptr for zeros.
  const T* previous(Rows::Row row) const {
    const int64_t t = call_.reverse ? row.t + 1 : row.t - 1;
    if (t >= 0 && t < shape_.T &&
        (shape_.batch_sizes == nullptr || row.b < shape_.batch_sizes[t])) {
      return steps_.at(call_.h, t, row.b);
    }
    return call_.h0 != nullptr ? call_.h0 + row.b * shape_.H : nullptr;
  }

  // Adds the sums of the rows of o.p to db, by sums of a few rows, for accuracy.
  static void bias_gradient(const Outer<T>& o, T* db, T* sum) {
    for (int64_t k0 = 0; k0 < o.K; k0 += kSumRows) {
      std::fill_n(sum, o.M, T(0));
      for (int64_t k = k0; k < std::min(o.K, k0 + kSumRows); ++k) {
        for (int64_t m = 0; m < o.M; ++m) {
          sum[m] += o.p[k * o.p_stride + m];
        }
      }
      for (int64_t m = 0; m < o.M; ++m) {
        db[m] = o.add || k0 > 0 ? db[m] + sum[m] : sum[m];
      }
    }
  }

  // Columns [m0, m1) of dtable: each row of dpre added to its token's.
  void table_gradient(int64_t m0, int64_t m1) const {
    const int64_t H = shape_.H;
    for (int64_t token = 0; token < call_.I; ++token) {
      std::fill(call_.dtable + token * H + m0, call_.dtable + token * H + m1, T(0));
    }
    Rows::Row row = rows_[0];
    for (int64_t n = 0; n < steps_.total(); ++n, row = rows_.after(row)) {
      const T* const from = dpre_buffer_.get() + n * ld_;
      T* const to = call_.dtable + *steps_.at(call_.tokens, row.t, row.b) * H;
      for (int64_t m = m0; m < m1; ++m) {
        to[m] += from[m];
      }
    }
  }

  const Shape& shape_;
  const Backward<T>& call_;
  bool add_dx_;
  const Kernels<T>& kernels_;
  Steps steps_;
  Rows rows_;
  bool dx_, dw_;                        // wanted
  int64_t ld_, q_ld_;                   // elements from row to row of the buffers
  Buffer<T> w_hh_, w_ih_;               // packed
  Buffer<T> dpre_buffer_;               // [all rows, ld]
  Sequence<T> dpre_;                    // the same by step
  Buffer<T> state_[2];                  // [B, ld]
  Buffer<T> q_;                         // [team, kProductRows, q_ld]
  std::unique_ptr<Barrier[]> barriers_; // of the team, then of each group
};

template <class T> double multiply_adds(const Shape& shape, const Backward<T>& call) {
  const Steps steps(shape, call.reverse);
  const int64_t I = (call.dx.data != nullptr ? call.I : 0) + (call.dw_ih != nullptr ? call.I : 0);
  const int64_t H = shape.H + (call.dw_hh != nullptr ? shape.H : 0);
  return double(steps.total()) * shape.H * double(H + I);
}

// `count` directions of one layer at the same time, from the given one on.
template <class T> void wave(const Shape& shape, const Backward<T>* calls, int count, bool add_dx) {
  double work = 0;
  for (int n = 0; n < count; ++n) {
    work += multiply_adds(shape, calls[n]);
  }
  const int wanted = threads_for(shape, work);
  std::vector<std::unique_ptr<Layer<T>>> layers;
  for (int n = 0; n < count; ++n) {
    layers.push_back(std::make_unique<Layer<T>>(shape, calls[n], wanted, add_dx || n > 0));
  }
  Barrier all;
  parallel(wanted, [&](int thread, int threads) {
    const Team team(thread, threads, count);
    if (threads >= count) {
      layers[team.index]->recur(team.thread, team.threads);
    } else {
      for (const auto& layer : layers) {
        layer->recur(thread, threads);
      }
    }
    all.wait(threads); // dpre is complete
    for (const auto& layer : layers) {
      layer->sum_up(thread, threads);
    }
  });
}

template <class T>
void backward_any(const Shape& shape, int64_t layers, int64_t directions,
                  const Backward<T>* stack) {
  for (int64_t n = 0; n < layers * directions; ++n) {
    if (stack[n].tokens.data != nullptr) {
      check_tokens(Steps(shape, stack[n].reverse), stack[n].tokens, stack[n].I);
    }
  }
  const int64_t width = directions > 1 ? at_once<T>(shape, layers, directions) : 1;
  for (int64_t layer = layers - 1; layer >= 0; --layer) {
    for (int64_t d = 0; d < directions; d += width) {
      wave(shape, stack + layer * directions + d, static_cast<int>(width), d > 0);
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

} // namespace rnnfast
