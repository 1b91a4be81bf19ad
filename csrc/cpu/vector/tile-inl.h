// The fused product, which is the whole arithmetic of a time step: tiles of a matrix product, and
// an epilogue that adds the bias and applies the activation while the sums of the tile are in
// cache.

#include "lanes-inl.h"
#include "math-inl.h"
#include "pack-inl.h"
#include "product-inl.h"

// Finish a tile `acc`, [rows, width], of the rows [row, row + rows) and the columns
// [col, col + width): add the addends, apply the activation, and write the result. kWhole means
// that all these columns exist. Nothing calls memcpy in that case, so that GCC keeps the constants
// of the activation in registers.
template <class S, class O, Activation A, bool kWhole>
static void epilogue(const FusedProduct<S, O>& product, int64_t row, int64_t rows, int64_t col,
                     int64_t width, const Sum<S>* acc) {
  using C = Sum<S>;
  constexpr int VL = kVector<C>;
  constexpr bool kNeedsH = A == Activation::kTanhGrad || A == Activation::kReluGrad;
  for (int64_t i = row; i < row + rows; ++i, acc += width) {
    for (int64_t j = 0; j < width && (kWhole || col + j < product.N); j += VL) {
      const int64_t c = col + j;
      const int64_t n = product.N - c;
      Vec<C> v = load<C>(acc + j);
      Vec<C> h = {};
      if (product.sums_before != nullptr) {
        v += load_part<kWhole, C>(product.sums_before + i * product.sums_before_stride + c, n);
      }
      if (product.addend != nullptr) {
        v += load_part<kWhole, S>(product.addend + i * product.addend_stride + c, n);
      }
      if (product.addend2 != nullptr) {
        v += load_part<kWhole, S>(product.addend2 + i * product.addend2_stride + c, n);
      }
      if constexpr (kNeedsH) {
        h = load_part<kWhole, S>(product.h + i * product.h_stride + c, n);
      }
      v = activate<C, A>(v, h);
      if (product.operand != nullptr) {
        store_operand<O>(product.operand + i * product.operand_stride + c, n, v);
      }
      if (product.sums != nullptr) {
        store<C>(product.sums + i * product.sums_stride + c, v);
      }
      if (product.out != nullptr) {
        store_part<kWhole, S>(product.out + i * product.out_stride + c, n, v);
      }
    }
  }
}

// The epilogues of an activation, for tiles whose columns all exist and for tiles at the edge.
template <class S, class O> struct Epilogue {
  using Function = void (*)(const FusedProduct<S, O>&, int64_t, int64_t, int64_t, int64_t,
                            const Sum<S>*);
  Function whole, edge;
};
template <class S, class O, Activation A>
constexpr Epilogue<S, O> kEpilogue = {epilogue<S, O, A, true>, epilogue<S, O, A, false>};

#include "leaky-inl.h"

// Fetch the left factor at once if other threads have just written a part of it (`shared`).
template <class S, class O>
RNNFAST_INLINE void fetch_left_factor(const FusedProduct<S, O>& product, bool shared) {
  for (int64_t i = 0; shared && i < product.rows; ++i) {
    for (int64_t k = 0; k < product.K; k += 64 / sizeof(O)) {
      __builtin_prefetch(product.a + i * product.a_stride + k);
    }
  }
}

#include "gated-inl.h"

template <class S, class O>
static const Epilogue<S, O>& choose_epilogue(const FusedProduct<S, O>& product) {
  if (product.gates != nullptr) {
    return choose_gated_backward<S, O>(*product.gates);
  }
  if (product.leak != nullptr) {
    return choose_leaky_epilogue<S, O>(*product.leak);
  }
  switch (product.act) {
  case Activation::kTanh:
    return kEpilogue<S, O, Activation::kTanh>;
  case Activation::kRelu:
    return kEpilogue<S, O, Activation::kRelu>;
  case Activation::kTanhGrad:
    return kEpilogue<S, O, Activation::kTanhGrad>;
  case Activation::kReluGrad:
    return kEpilogue<S, O, Activation::kReluGrad>;
  case Activation::kIdentity:
    break;
  }
  return kEpilogue<S, O, Activation::kIdentity>;
}

// Fetch what the epilogue will read of the caller's tensors while the product is computed. It may
// be as far away as main memory.
template <class S, class O>
RNNFAST_INLINE void prefetch(const FusedProduct<S, O>& product, int64_t row, int64_t rows,
                             int64_t col, int64_t width) {
  constexpr int64_t kLine = 64 / sizeof(S);
  for (int64_t i = row; i < row + rows; ++i) {
    for (int64_t j = col; j < col + width; j += kLine) {
      if (product.h != nullptr) {
        __builtin_prefetch(product.h + i * product.h_stride + j);
      }
      if (product.addend != nullptr) {
        __builtin_prefetch(product.addend + i * product.addend_stride + j);
      }
    }
  }
}

// Fetch what the epilogue of a backward step of gated units will read.
template <class S, class O>
static void prefetch_saved(const FusedProduct<S, O>& product, int64_t row, int64_t rows,
                           int64_t col, int64_t width) {
  const GateStep<S>& step = *product.gates;
  for (int64_t i = row; i < row + rows; ++i) {
    for (int s = 0; s < saved_of(step.cell); ++s) {
      for (int64_t j = col; j < col + width; j += 64 / sizeof(S)) {
        __builtin_prefetch(step.saved + i * step.saved_stride + s * product.N + j);
      }
    }
  }
}

// Fetch more for a FusedProduct that is `far`: what the epilogue will write, and a part of the
// panels that come next. Otherwise the first block of rows that uses these panels would wait for
// them. The `blocks` blocks of rows fetch equal parts.
template <class S, class O>
RNNFAST_INLINE void prefetch_far(const FusedProduct<S, O>& product, int64_t row, int64_t rows,
                                 int64_t col, int64_t width, int64_t block, int64_t blocks) {
  for (int64_t i = row; i < row + rows; ++i) {
    for (int64_t j = col; j < col + width; j += 64 / sizeof(Sum<S>)) {
      __builtin_prefetch(product.sums + i * product.sums_stride + j, 1);
    }
  }
  if (col + width < product.col_end) {
    const int64_t size = padded_depth<O>(product.K) * width;
    const S* const next = product.w + (col + width) * padded_depth<O>(product.K);
    for (int64_t i = size * block / blocks; i < size * (block + 1) / blocks; i += 64 / sizeof(S)) {
      __builtin_prefetch(next + i, 0, 2);
    }
  }
}

// Compute all rows of P panels of columns from `col` on, in blocks of nearly equal height.
template <class S, class O, int P, int NV>
static void fused_columns(const FusedProduct<S, O>& product, int64_t col,
                          const Epilogue<S, O>& epilogue) {
  constexpr int64_t kWidth = int64_t(P) * NV * kVector<Sum<S>>;
  const auto tile_epilogue = col + kWidth <= product.N ? epilogue.whole : epilogue.edge;
  alignas(64) Sum<S> acc[RNNFAST_MAX_ROWS * kWidth];
  const int64_t blocks = (product.rows + RNNFAST_MAX_ROWS - 1) / RNNFAST_MAX_ROWS;
  const int64_t depth = padded_depth<O>(product.K);
  for (int64_t block = 0, row = 0; block < blocks; ++block) {
    const int64_t rows = (product.rows - row) / (blocks - block);
    prefetch(product, row, rows, col, kWidth);
    if (product.gates != nullptr) {
      prefetch_saved(product, row, rows, col, kWidth);
    }
    if (product.far) {
      prefetch_far(product, row, rows, col, kWidth, block, blocks);
    }
    accumulate_parts<S, O, P, NV>(rows, product.a + row * product.a_stride, product.a_stride,
                                  product.w + col * depth, depth * kPanel<Sum<S>>, product.K, acc);
    tile_epilogue(product, row, rows, col, kWidth, acc);
    row += rows;
  }
}

// See FusedProduct in isa.h.
template <class S, class O> static void fused_product(const FusedProduct<S, O>& product) {
  if (product.gates != nullptr && !product.gates->backward) {
    gated_step<S, O, true>(product);
    return;
  }
  const Epilogue<S, O>& epilogue = choose_epilogue<S, O>(product);
  constexpr int64_t kWide = kPanel<Sum<S>>;
  int64_t c = product.col_begin;
  fetch_left_factor(product, product.col_end - product.col_begin < product.N);
  if (panels_at_once(product.rows) == 4) {
    for (; c + 4 * kWide <= product.col_end; c += 4 * kWide) {
      fused_columns<S, O, 4, 2>(product, c, epilogue);
    }
  }
  if (panels_at_once(product.rows) >= 2) {
    for (; c + 2 * kWide <= product.col_end; c += 2 * kWide) {
      fused_columns<S, O, 2, 2>(product, c, epilogue);
    }
  }
  for (; c < product.col_end; c += kWide) {
    if constexpr (!kWidened<S, O>) {
      if (c + kVector<Sum<S>> >= product.col_end) {
        fused_columns<S, O, 1, 1>(product, c, epilogue);
        return;
      }
    }
    fused_columns<S, O, 1, 2>(product, c, epilogue);
  }
}

// See VectorKernels::unpacked_product.
template <class S, class O> static void unpacked_product(const FusedProduct<S, O>& product) {
  if (product.gates != nullptr) {
    gated_step<S, O, false>(product);
    return;
  }
  constexpr int VL = kVector<Sum<S>>;
  const Epilogue<S, O>& epilogue = choose_epilogue<S, O>(product);
  for (int64_t c = product.col_begin; c < product.col_end; c += VL) {
    const int64_t count = product.N - c;
    const auto tile_epilogue = count >= VL ? epilogue.whole : epilogue.edge;
    for (int64_t row = 0; row < product.rows; ++row) {
      alignas(64) Sum<S> acc[VL];
      dot_products<S, O>(product.a + row * product.a_stride, product.w + c * product.K, count,
                         product.K, acc);
      tile_epilogue(product, row, 1, c, VL, acc);
    }
  }
}
