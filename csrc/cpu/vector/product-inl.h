// The inner loop of a matrix product.
//
// A tile is MR rows by P panels of NV vectors. Its accumulators stay in registers for the whole of
// K. For every element K runs from 0 up, one fused multiply-add at a time, in a tile of any shape.
// A K of more than 512 is summed in parts of 256, whose sums are added in their order. So the
// result of a row does not depend on the rows and columns that it is computed with, and therefore
// not on the number of threads.

// Load a packed row, or pair of rows, of NV vectors in the form that multiply_add takes.
template <class S, class O, int NV> RNNFAST_INLINE void load_packed(const S* w, Vec<Sum<S>>* b) {
  constexpr int VL = kVector<Sum<S>>;
  if constexpr (!kWidened<S, O>) {
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) {
      b[j] = load<Sum<S>>(reinterpret_cast<const Sum<S>*>(w) + j * VL);
    }
  } else {
    static_assert(NV == 2);
#if defined(RNNFAST_WIDEN_F16)
    if constexpr (std::is_same_v<S, float16>) {
      b[0] = load_as_sum<S>(w), b[1] = load_as_sum<S>(w + VL);
      return;
    }
#endif
    using Unsigned = typename Lanes<float>::Unsigned;
    const Unsigned both = (Unsigned)load<float>(reinterpret_cast<const float*>(w));
    if constexpr (std::is_same_v<S, bfloat16>) {
      b[0] = (Vec<float>)(both << 16), b[1] = (Vec<float>)(both & 0xFFFF0000);
    } else {
      using Half = typename Lanes<float>::Half;
      b[0] = widen<S>(__builtin_convertvector(both & 0xFFFF, Half));
      b[1] = widen<S>(__builtin_convertvector(both >> 16, Half));
    }
  }
}

// Return sum + a b, where every lane uses the same element, or pair of elements, of a.
template <class O>
RNNFAST_INLINE Vec<Sum<O>> multiply_add(Vec<Sum<O>> sum, const O* a, Vec<Sum<O>> b) {
  if constexpr (kPair<O> == 1) {
    return sum + *a * b;
  } else {
#if defined(RNNFAST_MULTIPLY_ADD_PAIRS)
    return RNNFAST_MULTIPLY_ADD_PAIRS(sum, a, b);
#endif
  }
}

// Return how many panels a tile of `rows` rows takes side by side. A tile with few rows takes more,
// because only enough accumulators hide the latency of the multiply-add.
constexpr int panels_at_once(int64_t rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

// A tile fetches the packed factor so many bytes ahead, because a large one comes from the last
// cache or from memory, and what the CPU fetches by itself ends with each page of 4 KiB. A tile of
// up to three rows does without, because reading is what limits it. csrc/README.md has the figures.
constexpr int64_t kFetchAhead = 1 << 14;

// Compute the tile result = a w and store it without gaps. GCC keeps the accumulators in registers
// only if every loop over them is unrolled. The function is not inlined, so that each shape of tile
// has all registers and can be found in a disassembly.
template <class S, class O, int MR, int P, int NV>
__attribute__((noinline)) static void accumulate(const O* __restrict a, int64_t a_stride,
                                                 const S* __restrict w, int64_t panel_size,
                                                 int64_t K, Sum<S>* __restrict result) {
  using C = Sum<S>;
  constexpr int VL = kVector<C>;
  Vec<C> acc[MR][P * NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < P * NV; ++j) {
      acc[i][j] = Vec<C>{};
    }
  }
  for (int64_t k = 0; k < K; k += kPair<O>) {
    Vec<C> b[P * NV];
#pragma GCC unroll 16
    for (int j = 0; j < P; ++j) {
      load_packed<S, O, NV>(w + j * panel_size, b + j * NV);
    }
#pragma GCC unroll 16
    for (int j = 0; j < P * NV; ++j) {
      if constexpr (MR > 1) {
        keep_in_register<C>(b[j]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < P * NV; ++j) {
        acc[i][j] = multiply_add<O>(acc[i][j], a + i * a_stride + k, b[j]);
      }
    }
    if constexpr (panels_at_once(MR) == 1) {
      const char* const ahead = reinterpret_cast<const char*>(w) + kFetchAhead;
#pragma GCC unroll 16
      for (int line = 0; line < NV * VL * kPair<O> * int(sizeof(S)); line += 64) {
        __builtin_prefetch(ahead + line, 0, 2);
      }
    }
    w += NV * VL * kPair<O>;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < P * NV; ++j) {
      store<C>(result + (i * P * NV + j) * VL, acc[i][j]);
    }
  }
}

#if !defined(RNNFAST_TILE_REGISTERS)
// Call accumulate for a number of rows that is known at run time only.
template <class S, class O, int P, int NV, int MR = RNNFAST_MAX_ROWS>
RNNFAST_INLINE void accumulate_rows(int64_t rows, const O* a, int64_t a_stride, const S* w,
                                    int64_t panel_size, int64_t K, Sum<S>* result) {
  if constexpr (MR > 1) {
    if (rows < MR) {
      return accumulate_rows<S, O, P, NV, MR - 1>(rows, a, a_stride, w, panel_size, K, result);
    }
  }
  if constexpr (P <= panels_at_once(MR)) {
    accumulate<S, O, MR, P, NV>(a, a_stride, w, panel_size, K, result);
  }
}
#else // amx-inl.h defines the function
template <class S, class O, int P, int NV>
static void accumulate_rows(int64_t rows, const O* a, int64_t a_stride, const S* w,
                            int64_t panel_size, int64_t K, Sum<S>* result);
#endif

// Compute the tile result = a w for any K. One long sum would be less accurate than the product of
// torch, which sums K in parts as well. Up to 512 elements the difference is small.
template <class S, class O, int P, int NV>
static void accumulate_parts(int64_t rows, const O* a, int64_t a_stride, const S* w,
                             int64_t panel_size, int64_t K, Sum<S>* result) {
  using C = Sum<S>;
  constexpr int64_t kLong = 512, kPart = 256, kWidth = int64_t(P) * NV * kVector<C>;
  const int64_t part = K <= kLong ? K : kPart;
  accumulate_rows<S, O, P, NV>(rows, a, a_stride, w, panel_size, part, result);
  for (int64_t k = part; k < K; k += part) {
    alignas(64) C sums[RNNFAST_MAX_ROWS * kWidth];
    accumulate_rows<S, O, P, NV>(rows, a + k, a_stride, w + k * NV * kVector<C>, panel_size,
                                 K - k < part ? K - k : part, sums);
    for (int64_t i = 0; i < rows * kWidth; i += kVector<C>) {
      store<C>(result + i, load<C>(result + i) + load<C>(sums + i));
    }
  }
}

// Multiply a row by as many rows of `w`, which is not packed, as a vector has lanes. The first
// `count` rows of `w` exist; the results of the others are without meaning. A transposition of the
// accumulators adds up their lanes.
template <class S, class O>
__attribute__((noinline)) static void dot_products(const O* __restrict a, const S* __restrict w,
                                                   int64_t count, int64_t K,
                                                   Sum<S>* __restrict result) {
  using C = Sum<S>;
  constexpr int VL = kVector<C>;
  const S* rows[VL];
  Vec<C> acc[VL];
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) {
    rows[i] = w + (i < count ? i : 0) * K;
    acc[i] = Vec<C>{};
  }
  int64_t k = 0;
  for (; k + VL <= K; k += VL) {
    const Vec<C> factor = load_as_sum<O>(a + k);
#pragma GCC unroll 16
    for (int i = 0; i < VL; ++i) {
      acc[i] += factor * load_as_sum<S>(rows[i] + k);
    }
  }
  transpose<C>(acc);
#pragma GCC unroll 16
  for (int step = VL / 2; step > 0; step /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < step; ++i) {
      acc[i] += acc[i + step];
    }
  }
  store<C>(result, acc[0]);
  for (; k < K; ++k) {
    const C factor = element_as_sum<O>(a + k);
    for (int i = 0; i < VL; ++i) {
      result[i] += factor * element_as_sum<S>(rows[i] + k);
    }
  }
}
