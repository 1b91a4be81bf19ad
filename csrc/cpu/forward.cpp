// The recurrence forward in time; the arithmetic of a step is in tile-inl.h.
//
// Work is split over `groups` of rows, each computed by `members` threads that split the hidden
// columns. Rows are independent, so groups never meet; members exchange h_t through a barrier a
// step and exist only where there are too few rows to go round.
//
// The state between steps lives in two compact buffers that alternate (`state`), not in the
// caller's tensor: its rows are padded, so that they fall into different cache sets whatever the
// caller's strides, and hold h0 before the first step of a row.
#include "parallel.h"
#include "work.h"

namespace rnnfast {
namespace {

// The input projection runs over this many rows at a time, a few steps ahead of the recurrence:
// long enough to use each panel of W_ih well, short enough to stay in cache until it is read.
constexpr int64_t kBlockRows = 128;

// Rows of a buffer that holds a block for every thread: kBlockRows each, or all of its share. A row
// is in the shares of all members of its group, and members exist only for few rows: see Share.
int64_t block_rows(int threads, int64_t B) { return threads * (kBlockRows + 2 * kGroupRows) + B; }
// Where a thread's block begins in it.
int64_t block_offset(const Steps& steps, int64_t B, int64_t H, int64_t panel, int thread,
                     int threads) {
  int64_t offset = 0;
  for (int before = 0; before < thread; ++before) {
    const Share share(steps, B, H, panel, before, threads);
    offset += std::max(kBlockRows, share.r1 - share.r0);
  }
  return offset;
}

// Everything one call works in.
template <class T> struct Workspace {
  int64_t x_ld, ld;           // elements from row to row of the buffers
  Buffer<T> w_ih, w_hh, bias; // packed, packed, b_ih + b_hh
  Buffer<T> state[2];         // [B, ld]
  Buffer<T> x_blocks, pre_blocks;
};

// W_ih x + b_ih + b_hh for the share's rows of steps [i0, i1), one after another in `pre`.
template <class T>
void project(const Forward<T>& a, const Kernels<T>& kernels, const Steps& steps, const Share& share,
             const Workspace<T>& space, int64_t i0, int64_t i1, T* x, T* pre) {
  int64_t n = 0;
  for (int64_t i = i0; i < i1; ++i) {
    for (int64_t r = share.r0; r < share.r0 + active(steps, share, i); ++r, ++n) {
      if (a.tokens.data == nullptr) {
        std::copy_n(steps.at(a.x, steps.time(i), r), a.I, x + n * space.x_ld);
        continue;
      }
      const T* const row = a.table + *steps.at(a.tokens, steps.time(i), r) * a.H;
      for (int64_t c = share.c0; c < share.c1; ++c) {
        pre[n * space.ld + c] = row[c] + space.bias[c];
      }
    }
  }
  if (a.tokens.data == nullptr) {
    Step<T> s{};
    s.rows = n, s.K = a.I, s.N = a.H;
    s.col_begin = share.c0, s.col_end = share.c1;
    s.a = x, s.a_stride = space.x_ld, s.w = space.w_ih.get();
    s.act = Activation::kIdentity;
    s.addend = space.bias.get(), s.addend_stride = 0;
    s.padded = pre, s.padded_stride = space.ld;
    kernels.step(s);
  }
}

// The share's rows through all steps; `x` and `pre` are its own blocks.
template <class T>
void recur(const Forward<T>& a, const Kernels<T>& kernels, const Steps& steps, const Share& share,
           const Workspace<T>& space, T* x, T* pre, Barrier& barrier) {
  const int64_t ld = space.ld, block = std::max<int64_t>(1, kBlockRows / (share.r1 - share.r0));
  for (int64_t i0 = 0; i0 < a.shape.T; i0 += block) {
    const int64_t i1 = std::min(a.shape.T, i0 + block);
    project(a, kernels, steps, share, space, i0, i1, x, pre);
    const T* addend = pre;
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t rows = active(steps, share, i);
      if (rows == 0) {
        continue;
      }
      Step<T> s{};
      s.rows = rows, s.N = a.H;
      s.K = i == 0 && a.h0 == nullptr ? 0 : a.H;
      s.col_begin = share.c0, s.col_end = share.c1;
      s.a = space.state[i % 2].get() + share.r0 * ld, s.a_stride = ld, s.w = space.w_hh.get();
      s.act = a.shape.relu ? Activation::kRelu : Activation::kTanh;
      s.addend = addend, s.addend_stride = ld;
      s.padded = space.state[(i + 1) % 2].get() + share.r0 * ld, s.padded_stride = ld;
      s.out = steps.at(a.h, steps.time(i), share.r0), s.out_stride = a.h.row;
      kernels.step(s);
      barrier.wait(share.members);
      addend += rows * ld;
    }
  }
}

template <class T> void forward_any(const Forward<T>& a) {
  const Kernels<T>& kernels = rnnfast::kernels<T>();
  const int64_t B = a.shape.B, H = a.H;
  const int64_t I = a.tokens.data == nullptr ? a.I : 0; // columns of the input product
  const Steps steps(a.shape, a.shape.reverse);
  if (a.tokens.data != nullptr) {
    check_tokens(steps, a.tokens, a.I);
  }
  const int wanted = threads_for(a.shape, double(steps.total()) * H * (H + I));

  const int64_t width = round_up(H, kernels.vector);
  const int64_t x_ld = row_stride<T>(I), ld = row_stride<T>(H);
  const Workspace<T> space{x_ld,
                           ld,
                           allocate<T>(I * width),
                           allocate<T>(H * width),
                           allocate<T>(width),
                           {allocate<T>(B * ld), allocate<T>(B * ld)},
                           allocate<T>(block_rows(wanted, B) * x_ld),
                           allocate<T>(block_rows(wanted, B) * ld)};
  const std::unique_ptr<Barrier[]> barriers(new Barrier[wanted + 1]);

  for (int64_t c = 0; c < width; ++c) {
    space.bias[c] = (a.b_ih != nullptr && c < H ? a.b_ih[c] : T(0)) +
                    (a.b_hh != nullptr && c < H ? a.b_hh[c] : T(0));
  }

  parallel(wanted, [&](int thread, int threads) {
    pack_part(kernels, a.w_ih, true, I, H, thread, threads, space.w_ih.get());
    pack_part(kernels, a.w_hh, true, H, H, thread, threads, space.w_hh.get());
    for (int64_t r = thread; r < B; r += threads) {
      for (const Buffer<T>& state : space.state) {
        if (a.h0 != nullptr) {
          std::copy_n(a.h0 + r * H, H, state.get() + r * ld);
        } else {
          std::fill_n(state.get() + r * ld, H, T(0));
        }
      }
    }
    barriers[0].wait(threads);

    const Share share(steps, B, H, kernels.panel, thread, threads);
    if (share.r0 < share.r1 && share.c0 < share.c1) {
      const int64_t offset = block_offset(steps, B, H, kernels.panel, thread, threads);
      recur(a, kernels, steps, share, space, space.x_blocks.get() + offset * x_ld,
            space.pre_blocks.get() + offset * ld, barriers[1 + share.group]);
    }
  });
}

} // namespace

void forward(const Forward<float>& a) { forward_any(a); }
void forward(const Forward<double>& a) { forward_any(a); }

} // namespace rnnfast
