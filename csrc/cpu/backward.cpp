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

// All rows of all steps, in the order in which they lie in memory.
class Rows {
public:
  struct Row {
    int64_t t, b;
  };

  template <class T>
  Rows(const Shape& shape, const Sequence<T>& layout)
      : shape_(shape), batch_major_(shape.batch_sizes == nullptr && layout.step < layout.row) {
    for (int64_t t = 0, sum = 0; shape.batch_sizes != nullptr && t < shape.T; ++t) {
      starts_.push_back(sum);
      sum += shape.batch_sizes[t];
    }
  }

  Row operator[](int64_t n) const {
    if (shape_.batch_sizes != nullptr) {
      const int64_t t = std::upper_bound(starts_.begin(), starts_.end(), n) - starts_.begin() - 1;
      return {t, n - starts_[t]};
    }
    return batch_major_ ? Row{n % shape_.T, n / shape_.T} : Row{n / shape_.B, n % shape_.B};
  }

  Row after(Row row) const {
    if (batch_major_) {
      return row.t + 1 < shape_.T ? Row{row.t + 1, row.b} : Row{0, row.b + 1};
    }
    const int64_t here = shape_.batch_sizes != nullptr ? shape_.batch_sizes[row.t] : shape_.B;
    return row.b + 1 < here ? Row{row.t, row.b + 1} : Row{row.t + 1, 0};
  }

private:
  Shape shape_;
  bool batch_major_;
  std::vector<int64_t> starts_;
};

// One thread's share of the recurrence.
template <class T>
void recur(const Backward<T>& a, const Kernels<T>& kernels, const Steps& steps, const Share& share,
           const T* w_hh, T* const (&state)[2], int64_t ld, Barrier& barrier) {
  const int64_t H = a.H;
  // Rows [begin, end) of the share at step i. Rows at their first step have no product yet, and
  // dh_n in its place.
  const auto run = [&](int64_t i, int64_t begin, int64_t end, bool first) {
    if (begin == end) {
      return;
    }
    const int64_t t = steps.time(i), r = share.r0 + begin;
    Step<T> s{};
    s.rows = end - begin, s.N = H;
    s.K = first ? 0 : H;
    s.col_begin = share.c0, s.col_end = share.c1;
    s.a = state[i % 2] + r * ld, s.a_stride = ld, s.w = w_hh;
    s.act = a.shape.relu ? Activation::kReluGrad : Activation::kTanhGrad;
    if (a.dy.data != nullptr) {
      s.addend = steps.at(a.dy, t, r), s.addend_stride = a.dy.row;
    }
    if (first && a.dh_n != nullptr) {
      s.addend2 = a.dh_n + r * H, s.addend2_stride = H;
    }
    s.h = steps.at(a.h, t, r), s.h_stride = a.h.row;
    s.padded = state[(i + 1) % 2] + r * ld, s.padded_stride = ld;
    s.out = steps.at(a.dpre, t, r), s.out_stride = a.dpre.row;
    kernels.step(s);
  };

  for (int64_t i = 0; i < a.shape.T; ++i) {
    const int64_t rows = active(steps, share, i), after = active(steps, share, i + 1);
    if (rows == 0) {
      continue;
    }
    const int64_t continuing = std::min(active(steps, share, i - 1), rows);
    run(i, 0, continuing, false);
    run(i, continuing, rows, true);
    barrier.wait(share.members);
    if (a.dh0 != nullptr && after < rows) { // rows at their last step
      const int64_t r = share.r0 + after;
      Step<T> s{};
      s.rows = rows - after, s.K = H, s.N = H;
      s.col_begin = share.c0, s.col_end = share.c1;
      s.a = state[(i + 1) % 2] + r * ld, s.a_stride = ld, s.w = w_hh;
      s.act = Activation::kIdentity;
      s.out = a.dh0 + r * H, s.out_stride = H;
      kernels.step(s);
    }
  }
}

// dx of rows [begin, end): dpre W_ih.
template <class T>
void input_gradient(const Backward<T>& a, const Kernels<T>& kernels, const Steps& steps,
                    const Rows& rows, int64_t begin, int64_t end, const T* w_ih, T* block,
                    int64_t ld) {
  for (int64_t n = begin; n < end;) {
    // As many rows as lie evenly spaced in dx: all, unless the caller's strides are odd.
    Rows::Row row = rows[n];
    T* const out = steps.at(a.dx, row.t, row.b);
    int64_t count = 0, stride = 0;
    for (; n + count < end && count < kProductRows; ++count, row = rows.after(row)) {
      const int64_t ahead = steps.at(a.dx, row.t, row.b) - out;
      stride = count == 1 ? ahead : stride;
      if (ahead != count * stride) {
        break;
      }
      std::copy_n(steps.at(a.dpre, row.t, row.b), a.H, block + count * ld);
    }
    Step<T> s{};
    s.rows = count, s.K = a.H, s.N = a.I;
    s.col_begin = 0, s.col_end = a.I;
    s.a = block, s.a_stride = ld, s.w = w_ih;
    s.act = Activation::kIdentity;
    s.addend = a.add_dx ? out : nullptr, s.addend_stride = stride;
    s.out = out, s.out_stride = stride;
    kernels.step(s);
    n += count;
  }
}

// Rows [m0, m1) of dW_ih and dW_hh and elements [m0, m1) of db. `p` and `q` are blocks of
// kProductRows compact rows.
template <class T>
void weight_gradients(const Backward<T>& a, const Kernels<T>& kernels, const Steps& steps,
                      const Rows& rows, int64_t m0, int64_t m1, T* p, int64_t p_ld, T* q,
                      int64_t q_ld) {
  const Shape& shape = a.shape;
  for (int64_t n0 = 0; n0 < steps.total(); n0 += kProductRows) {
    const int64_t count = std::min(kProductRows, steps.total() - n0);
    const Rows::Row first = rows[n0];
    Rows::Row row = first;
    for (int64_t k = 0; k < count; ++k, row = rows.after(row)) {
      std::copy_n(steps.at(a.dpre, row.t, row.b) + m0, m1 - m0, p + k * p_ld);
    }
    if (a.db != nullptr) { // by sums of a few rows, for accuracy; q is still free
      for (int64_t k0 = 0; k0 < count; k0 += kSumRows) {
        std::fill_n(q, m1 - m0, T(0));
        for (int64_t k = k0; k < std::min(count, k0 + kSumRows); ++k) {
          for (int64_t m = 0; m < m1 - m0; ++m) {
            q[m] += p[k * p_ld + m];
          }
        }
        for (int64_t m = 0; m < m1 - m0; ++m) {
          a.db[m0 + m] = n0 + k0 == 0 ? q[m] : a.db[m0 + m] + q[m];
        }
      }
    }
    Outer<T> o{};
    o.K = count, o.M = m1 - m0, o.p = p, o.p_stride = p_ld, o.q = q, o.q_stride = q_ld;
    o.add = n0 != 0;
    if (a.dw_ih != nullptr) {
      row = first;
      for (int64_t k = 0; k < count; ++k, row = rows.after(row)) {
        std::copy_n(steps.at(a.x, row.t, row.b), a.I, q + k * q_ld);
      }
      o.N = a.I, o.out = a.dw_ih + m0 * a.I, o.out_stride = a.I;
      kernels.outer(o);
    }
    if (a.dw_hh != nullptr) {
      row = first;
      for (int64_t k = 0; k < count; ++k, row = rows.after(row)) {
        const auto [t, b] = row;
        const int64_t previous = shape.reverse ? t + 1 : t - 1;
        const bool inside = previous >= 0 && previous < shape.T &&
                            (shape.batch_sizes == nullptr || b < shape.batch_sizes[previous]);
        const T* h = inside            ? steps.at(a.h, previous, b)
                     : a.h0 != nullptr ? a.h0 + b * a.H
                                       : nullptr;
        if (h != nullptr) {
          std::copy_n(h, a.H, q + k * q_ld);
        } else {
          std::fill_n(q + k * q_ld, a.H, T(0));
        }
      }
      o.N = a.H, o.out = a.dw_hh + m0 * a.H, o.out_stride = a.H;
      kernels.outer(o);
    }
  }
}

// Columns [m0, m1) of dtable: each row of dpre added to its token's.
template <class T>
void table_gradient(const Backward<T>& a, const Steps& steps, const Rows& rows, int64_t m0,
                    int64_t m1) {
  for (int64_t token = 0; token < a.I; ++token) {
    std::fill(a.dtable + token * a.H + m0, a.dtable + token * a.H + m1, T(0));
  }
  Rows::Row row = rows[0];
  for (int64_t n = 0; n < steps.total(); ++n, row = rows.after(row)) {
    const auto [t, b] = row;
    const T* const from = steps.at(a.dpre, t, b);
    T* const to = a.dtable + *steps.at(a.tokens, t, b) * a.H;
    for (int64_t m = m0; m < m1; ++m) {
      to[m] += from[m];
    }
  }
}

template <class T> void backward_any(Backward<T> a) {
  const Kernels<T>& kernels = rnnfast::kernels<T>();
  const int64_t B = a.shape.B, I = a.I, H = a.H;
  const Steps steps(a.shape, !a.shape.reverse);
  const Rows rows(a.shape, a.dpre);
  const Buffer<T> own_dpre = allocate<T>(a.dpre.data == nullptr ? steps.total() * H : 0);
  if (a.dpre.data == nullptr) {
    a.dpre.data = own_dpre.get();
  }
  const bool dw = a.dw_ih != nullptr || a.dw_hh != nullptr || a.db != nullptr;
  if (a.tokens.data != nullptr) {
    check_tokens(steps, a.tokens, I);
  }
  const bool dx = a.dx.data != nullptr;
  const double columns =
      double(H) + (dx ? I : 0) + (a.dw_ih != nullptr ? I : 0) + (a.dw_hh != nullptr ? H : 0);
  const int wanted = threads_for(a.shape, double(steps.total()) * H * columns);

  const int64_t ld = row_stride<T>(H);
  const int64_t q_ld = row_stride<T>(a.dw_ih != nullptr ? std::max(H, I) : H);
  const Buffer<T> w_hh = allocate<T>(H * round_up(H, kernels.vector));
  const Buffer<T> w_ih = allocate<T>(dx ? H * round_up(I, kernels.vector) : 0);
  const Buffer<T> state[2] = {allocate<T>(B * ld), allocate<T>(B * ld)};
  T* const buffers[2] = {state[0].get(), state[1].get()};
  const Buffer<T> p = allocate<T>(dx || dw ? wanted * kProductRows * ld : 0);
  const Buffer<T> q = allocate<T>(dw ? wanted * kProductRows * q_ld : 0);
  const std::unique_ptr<Barrier[]> barriers(new Barrier[wanted + 1]);

  parallel(wanted, [&](int thread, int threads) {
    pack_part(kernels, a.w_hh, false, H, H, thread, threads, w_hh.get());
    if (dx) {
      pack_part(kernels, a.w_ih, false, H, I, thread, threads, w_ih.get());
    }
    barriers[0].wait(threads);

    const Share share(steps, B, H, kernels.panel, thread, threads);
    if (share.r0 < share.r1 && share.c0 < share.c1) {
      recur(a, kernels, steps, share, w_hh.get(), buffers, ld, barriers[1 + share.group]);
    }
    if (!dx && !dw && a.dtable == nullptr) {
      return;
    }
    barriers[0].wait(threads); // dpre is complete

    T* const mine_p = p.get() + thread * kProductRows * ld;
    if (dx) {
      input_gradient(a, kernels, steps, rows, steps.total() * thread / threads,
                     steps.total() * (thread + 1) / threads, w_ih.get(), mine_p, ld);
    }
    if (dw) {
      weight_gradients(a, kernels, steps, rows, H * thread / threads, H * (thread + 1) / threads,
                       mine_p, ld, q.get() + thread * kProductRows * q_ld, q_ld);
    }
    if (a.dtable != nullptr) {
      table_gradient(a, steps, rows, H * thread / threads, H * (thread + 1) / threads);
    }
  });
}

} // namespace

void backward(const Backward<float>& a) { backward_any(a); }
void backward(const Backward<double>& a) { backward_any(a); }

} // namespace rnnfast
