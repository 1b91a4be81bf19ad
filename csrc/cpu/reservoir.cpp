// The leaky recurrence with a sparse recurrent matrix. The arithmetic of a step is in
// vector/sparse-inl.h; sparse.h describes the matrix.
//
// If there are as many rows as threads, each thread has its own rows. Otherwise the threads divide
// the units and meet at a barrier after each step, because each needs the whole state.
#include "../api/reservoir.h"

#include "parallel.h"
#include "sparse_pack.h"

namespace rnnfast {
namespace {

// With less work for each thread, two threads would save little: the barrier after each step and
// the exchange of the state took about 2 microseconds on two cores of a Zen 4.
constexpr double kMemberCycles = 10000;
// How many multiply-adds of a dense product, which threads_for counts, take as long as a cycle.
constexpr double kWorkPerCycle = 16;
// The input projection runs this many rows ahead of the recurrence. Its result should leave room
// for the matrix in the nearer caches.
constexpr int64_t kBlockRows = 32;

template <class T> const ReservoirKernels<T>& reservoir_kernels() {
  if constexpr (std::is_same_v<T, float>) {
    return current_isa().kernels->reservoir_f32;
  } else {
    return current_isa().kernels->reservoir_f64;
  }
}

// What a Reservoir keeps.
template <class T> struct Packed {
  Packed(const typename Reservoir<T>::Weights& w, Nonlinearity f, bool current, int threads)
      : I(w.I), H(w.H), f(f), current(current), threads(threads), kernels(current_kernels<T>()),
        steps(reservoir_kernels<T>()), w_hh(w, kernels.vector, steps.near) {
    const int64_t width = round_up(H, kernels.vector);
    w_ih = allocate<T>(kernels.packed_size(I, H));
    kernels.pack(w.w_ih, true, I, H, 0, H, w_ih.get());
    bias = allocate<T>(width), alpha = widened(w.alpha, H, width);
    sum_biases<T>(w.bias, nullptr, H, width, bias.get());
  }

  const int64_t I, H;
  const Nonlinearity f;
  const bool current;
  const int threads;
  const VectorKernels<T>& kernels;
  const ReservoirKernels<T>& steps;
  const SparseMatrix<T> w_hh;
  Buffer<T> w_ih, bias, alpha; // w_ih is packed
};

// The share of one thread in a call: the rows [r0, r1), and the units [c0, c1) of the strips
// [s0, s1). Either range may be empty.
struct Share {
  int member, members; // the members have the same rows and divide the units
  int64_t r0, r1, s0, s1, c0, c1;

  template <class T> Share(const Packed<T>& packed, int64_t B, int thread, int threads) {
    const SparseMatrix<T>& w_hh = packed.w_hh;
    const double by_work = double(B) * w_hh.cycles() / kMemberCycles;
    members = B >= threads ? 1 : int(std::clamp(by_work, 1.0, double(threads)));
    const int64_t groups = members > 1 ? 1 : std::min<int64_t>(threads, B);
    const int64_t group = thread / members;
    member = thread % members;
    r0 = std::min(B, B * group / groups), r1 = std::min(B, B * (group + 1) / groups);
    set_strips(packed);
  }

  // One member takes over the units of all.
  template <class T> void take_over(const Packed<T>& packed) {
    member = 0, members = 1;
    set_strips(packed);
  }

private:
  template <class T> void set_strips(const Packed<T>& packed) {
    s0 = packed.w_hh.cut(member, members), s1 = packed.w_hh.cut(member + 1, members);
    c0 = std::min(packed.H, s0 * packed.w_hh.strip_rows());
    c1 = std::min(packed.H, s1 * packed.w_hh.strip_rows());
  }
};

// One call.
template <class T> class Run {
public:
  Run(const Packed<T>& packed, const typename Reservoir<T>::Call& call)
      : packed_(packed), call_(call), x_ld_(row_stride<T>(packed.I)), ld_(row_stride<T>(packed.H)),
        block_rows_(std::max(kBlockRows, call.B)) {
    const double cycles = double(call.T_) * double(call.B) * packed.w_hh.cycles();
    threads_ = threads_for(packed.threads, cycles * kWorkPerCycle);
    x_blocks_ = allocate<T>(threads_ * block_rows_ * x_ld_);
    pre_blocks_ = allocate<T>(threads_ * block_rows_ * ld_);
    for (Buffer<T>* state : {&r_[0], &r_[1], &s_}) {
      *state = allocate<T>(call.B * ld_);
      std::fill_n(state->get(), call.B * ld_, T(0));
    }
  }

  void operator()() {
    parallel(threads_, [&](int thread, int threads) {
      const Share share(packed_, call_.B, thread, threads);
      if (share.r0 < share.r1) {
        recur(share, x_blocks_.get() + thread * block_rows_ * x_ld_,
              pre_blocks_.get() + thread * block_rows_ * ld_);
      }
    });
  }

private:
  template <class P> static P* at(const Sequence<P>& s, int64_t t, int64_t b) {
    return s.data + t * s.step + b * s.row;
  }

  // Give row b the state `from`, or zeros if it is nullptr, in the units of `share`. `r` is the
  // buffer that the next step reads.
  void set_state(const Share& share, int64_t b, const T* from, T* r) {
    const int64_t begin = b * ld_ + share.c0, n = share.c1 - share.c0;
    T* const state = (packed_.current ? s_.get() : r) + begin;
    if (from != nullptr) {
      std::copy_n(from + share.c0, n, state);
    } else {
      std::fill_n(state, n, T(0));
    }
    if (packed_.current) {
      packed_.steps.activate(packed_.f, state, n, r + begin);
    }
  }

  // Compute W_ih x + b + addend for the rows and units of `share` in the steps [t0, t1) and store
  // them one after another in `pre`. `x` is the buffer of this thread for the inputs.
  void project(const Share& share, int64_t t0, int64_t t1, T* x, T* pre) const {
    const int64_t rows = share.r1 - share.r0;
    for (int64_t i = 0; i < (t1 - t0) * rows; ++i) {
      packed_.kernels.widen(at(call_.x, t0 + i / rows, share.r0 + i % rows), packed_.I,
                            x + i * x_ld_);
    }
    FusedProduct<T> product{};
    product.rows = (t1 - t0) * rows, product.K = packed_.I, product.N = packed_.H;
    product.col_begin = share.c0, product.col_end = share.c1;
    product.a = x, product.a_stride = x_ld_, product.w = packed_.w_ih.get();
    product.act = Activation::kIdentity;
    product.sums_before = packed_.bias.get(), product.sums_before_stride = 0;
    product.sums = pre, product.sums_stride = ld_;
    packed_.kernels.fused_product(product);
    for (int64_t i = 0; call_.addend.data != nullptr && i < product.rows; ++i) {
      const T* const addend = at(call_.addend, t0 + i / rows, share.r0 + i % rows);
      for (int64_t c = share.c0; c < share.c1; ++c) {
        pre[i * ld_ + c] += addend[c];
      }
    }
  }

  // Take the rows of `share` through all steps.
  void recur(Share share, T* x, T* pre) {
    for (int64_t b = share.r0; b < share.r1; ++b) {
      set_state(share, b, is_reset(0, b) ? nullptr : first(b), r_[0].get());
    }
    barrier_.wait(share.members);
    const int64_t rows = share.r1 - share.r0, block = block_rows_ / rows;
    for (int64_t t0 = 0; t0 < call_.T_; t0 += block) {
      const int64_t t1 = std::min(call_.T_, t0 + block);
      project(share, t0, t1, x, pre);
      bool alone = false;
      for (int64_t t = t0; t < t1; ++t) {
        T* const after = r_[(t + 1) % 2].get();
        for (int64_t b = share.r0; b < share.r1; ++b) {
          step(share, t, b, pre + ((t - t0) * rows + b - share.r0) * ld_);
          if (is_reset(t + 1, b)) {
            set_state(share, b, nullptr, after);
          }
        }
        alone = t + 1 == t1 ? barrier_.wait_and_decide(share.members)
                            : (barrier_.wait(share.members), false);
      }
      if (alone && share.member > 0) {
        return;
      }
      if (alone) {
        share.take_over(packed_);
      }
    }
    for (int64_t b = share.r0; b < share.r1; ++b) {
      const T* const last = (packed_.current ? s_.get() : r_[call_.T_ % 2].get()) + b * ld_;
      std::copy(last + share.c0, last + share.c1, call_.last + b * packed_.H + share.c0);
    }
  }

  void step(const Share& share, int64_t t, int64_t b, const T* pre) {
    ReservoirStep<T> step;
    step.H = packed_.H, step.strip_begin = share.s0, step.strip_end = share.s1;
    step.chunks = packed_.w_hh.chunks(), step.f = packed_.f;
    step.before = r_[t % 2].get() + b * ld_, step.after = r_[(t + 1) % 2].get() + b * ld_;
    step.s = packed_.current ? s_.get() + b * ld_ : nullptr;
    step.pre = pre, step.alpha = packed_.alpha.get(), step.out = at(call_.r, t, b);
    packed_.steps.step(step);
    if (call_.states.data != nullptr) {
      std::copy(step.s + share.c0, step.s + share.c1, at(call_.states, t, b) + share.c0);
    }
  }

  const T* first(int64_t b) const {
    return call_.first == nullptr ? nullptr : call_.first + b * packed_.H;
  }
  bool is_reset(int64_t t, int64_t b) const {
    return call_.reset.data != nullptr && t < call_.T_ && *at(call_.reset, t, b);
  }

  const Packed<T>& packed_;
  const typename Reservoir<T>::Call& call_;
  const int64_t x_ld_, ld_, block_rows_; // ld_: elements from row to row of states and `pre`
  int threads_;
  Buffer<T> x_blocks_, pre_blocks_; // for each thread, of block_rows_ rows
  Buffer<T> r_[2], s_;              // [B, ld_]: r before and after a step, and s
  Barrier barrier_;
};

} // namespace

template <class T> class Reservoir<T>::Impl : public Packed<T> {
  using Packed<T>::Packed;
};

template <class T>
Reservoir<T>::Reservoir(const Weights& w, Nonlinearity f, bool current, int threads)
    : impl_(std::make_unique<Impl>(w, f, current, threads)) {}
template <class T> Reservoir<T>::~Reservoir() = default;
template <class T> void Reservoir<T>::run(const Call& call) const { Run<T>(*impl_, call)(); }

template class Reservoir<float>;
template class Reservoir<double>;

} // namespace rnnfast
