// The fused step, written once: a tile of a matrix product and what becomes of it. Included by
// every isa_*.cpp inside a namespace of its own, after a target pragma, with RNNFAST_VECTOR_BYTES
// and RNNFAST_MAX_ROWS set. Plain GCC/Clang vector extensions: the width is the only thing that
// differs.
//
// A tile is MR rows by P panels of NV vectors. Its accumulators live in registers for the whole of
// K. K always runs from 0 up, one fused multiply-add at a time, whatever the tile: a row's result
// does not depend on the rows and columns it was computed with, hence not on the number of threads.

#include "lanes-inl.h"
#include "math-inl.h"
#include "pack-inl.h"
#include "product-inl.h"

// What becomes of the product `acc` [rows, width] of rows [row, row + rows) and columns
// [col, col + width): addends, activation, and where it goes. kWhole: all these columns exist. Then
// nothing calls memcpy, and GCC keeps the constants of the activation in registers.
template <class S, class O, Activation A, bool kWhole>
static void finish(const Step<S, O>& s, int64_t row, int64_t rows, int64_t col, int64_t width,
                   const Sum<S>* acc) {
  using C = Sum<S>;
  constexpr int VL = kVector<C>;
  constexpr bool kNeedsH = A == Activation::kTanhGrad || A == Activation::kReluGrad;
  for (int64_t i = row; i < row + rows; ++i, acc += width) {
    for (int64_t j = 0; j < width && (kWhole || col + j < s.N); j += VL) {
      const int64_t c = col + j;
      const int64_t n = s.N - c;
      V<C> v = load<C>(acc + j);
      V<C> h = {};
      if (s.sums_before != nullptr) {
        v += load_part<kWhole, C>(s.sums_before + i * s.sums_before_stride + c, n);
      }
      if (s.addend != nullptr) {
        v += load_part<kWhole, S>(s.addend + i * s.addend_stride + c, n);
      }
      if (s.addend2 != nullptr) {
        v += load_part<kWhole, S>(s.addend2 + i * s.addend2_stride + c, n);
      }
      if constexpr (kNeedsH) {
        h = load_part<kWhole, S>(s.h + i * s.h_stride + c, n);
      }
      v = activate<C, A>(v, h);
      if (s.operand != nullptr) {
        O* const operand = s.operand + i * s.operand_stride + c;
        store_sum<O>(operand, v);
        if (kPair<O> == 2 && n < VL) { // what else is there may be NaN, from 0 times infinity
          operand[n] = O{};
        }
      }
      if (s.sums != nullptr) {
        store<C>(s.sums + i * s.sums_stride + c, v);
      }
      if (s.out != nullptr) {
        store_part<kWhole, S>(s.out + i * s.out_stride + c, n, v);
      }
    }
  }
}

template <class S, class O> struct Finish {
  using Function = void (*)(const Step<S, O>&, int64_t, int64_t, int64_t, int64_t, const Sum<S>*);
  Function whole, edge;
};
template <class S, class O, Activation A>
constexpr Finish<S, O> kFinish = {finish<S, O, A, true>, finish<S, O, A, false>};

template <class S, class O> static const Finish<S, O>& finisher(Activation act) {
  switch (act) {
  case Activation::kTanh:
    return kFinish<S, O, Activation::kTanh>;
  case Activation::kRelu:
    return kFinish<S, O, Activation::kRelu>;
  case Activation::kTanhGrad:
    return kFinish<S, O, Activation::kTanhGrad>;
  case Activation::kReluGrad:
    return kFinish<S, O, Activation::kReluGrad>;
  case Activation::kIdentity:
    break;
  }
  return kFinish<S, O, Activation::kIdentity>;
}

// What `finish` will read of the caller's tensors, fetched while the product is computed: it may be
// as far away as memory.
template <class S, class O>
RNNFAST_INLINE void prefetch(const Step<S, O>& s, int64_t row, int64_t rows, int64_t col,
                             int64_t width) {
  constexpr int64_t kLine = 64 / sizeof(S);
  for (int64_t i = row; i < row + rows; ++i) {
    for (int64_t j = col; j < col + width; j += kLine) {
      if (s.h != nullptr) {
        __builtin_prefetch(s.h + i * s.h_stride + j);
      }
      if (s.addend != nullptr) {
        __builtin_prefetch(s.addend + i * s.addend_stride + j);
      }
    }
  }
}

// Of a Step that is `far`: what `finish` will write, and a block's share of the panels after these,
// which the first block to use them would have to wait for.
template <class S, class O>
RNNFAST_INLINE void prefetch_far(const Step<S, O>& s, int64_t row, int64_t rows, int64_t col,
                                 int64_t width, int64_t block, int64_t blocks) {
  for (int64_t i = row; i < row + rows; ++i) {
    for (int64_t j = col; j < col + width; j += 64 / sizeof(Sum<S>)) {
      __builtin_prefetch(s.sums + i * s.sums_stride + j, 1);
    }
  }
  if (col + width < s.col_end) {
    const int64_t size = packed_rows<O>(s.K) * width;
    const S* const next = s.w + (col + width) * packed_rows<O>(s.K);
    for (int64_t i = size * block / blocks; i < size * (block + 1) / blocks; i += 64 / sizeof(S)) {
      __builtin_prefetch(next + i, 0, 2);
    }
  }
}

// Columns [col, col + P panels): all rows, in blocks of nearly equal height.
template <class S, class O, int P, int NV>
static void columns(const Step<S, O>& s, int64_t col, const Finish<S, O>& finish) {
  constexpr int64_t kWidth = int64_t(P) * NV * kVector<Sum<S>>;
  const auto finish_tile = col + kWidth <= s.N ? finish.whole : finish.edge;
  alignas(64) Sum<S> acc[RNNFAST_MAX_ROWS * kWidth];
  const int64_t blocks = (s.rows + RNNFAST_MAX_ROWS - 1) / RNNFAST_MAX_ROWS;
  const int64_t depth = packed_rows<O>(s.K);
  for (int64_t block = 0, row = 0; block < blocks; ++block) {
    const int64_t rows = (s.rows - row) / (blocks - block);
    prefetch(s, row, rows, col, kWidth);
    if (s.far) {
      prefetch_far(s, row, rows, col, kWidth, block, blocks);
    }
    accumulate_rows<S, O, P, NV>(rows, s.a + row * s.a_stride, s.a_stride, s.w + col * depth,
                                 depth * kPanel<Sum<S>>, s.K, acc);
    finish_tile(s, row, rows, col, kWidth, acc);
    row += rows;
  }
}

template <class S, class O> static void step(const Step<S, O>& s) {
  const Finish<S, O>& finish = finisher<S, O>(s.act);
  constexpr int64_t kWide = kPanel<Sum<S>>;
  int64_t c = s.col_begin;
  if (s.col_end - s.col_begin <
      s.N) { // another thread has just written part of it: fetch it all at once
    for (int64_t i = 0; i < s.rows; ++i) {
      for (int64_t k = 0; k < s.K; k += 64 / sizeof(O)) {
        __builtin_prefetch(s.a + i * s.a_stride + k);
      }
    }
  }
  if (panels_at_once(s.rows) == 4) {
    for (; c + 4 * kWide <= s.col_end; c += 4 * kWide) {
      columns<S, O, 4, 2>(s, c, finish);
    }
  }
  if (panels_at_once(s.rows) >= 2) {
    for (; c + 2 * kWide <= s.col_end; c += 2 * kWide) {
      columns<S, O, 2, 2>(s, c, finish);
    }
  }
  for (; c < s.col_end; c += kWide) {
    if constexpr (!kWidened<S, O>) {
      if (c + kVector<Sum<S>> >= s.col_end) {
        columns<S, O, 1, 1>(s, c, finish);
        return;
      }
    }
    columns<S, O, 1, 2>(s, c, finish);
  }
}
