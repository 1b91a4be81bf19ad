// Sums of outer products, which give the gradients of weights; see OuterProducts in isa.h.

// Add a tile of sums, [rows, NV vectors], to `out` from row m and column n on, or write it there if
// `add` is false. Adding up blocks of K one by one is also more accurate than a single long sum.
template <int NV, class S, class O>
RNNFAST_INLINE void add_up(const OuterProducts<S, O>& o, int64_t rows, int64_t m, int64_t n,
                           const Sum<O>* sums) {
  using C = Sum<O>;
  constexpr int VL = kVector<C>;
  C* const out = o.out + m * o.N + n;
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < NV * VL && n + j < o.N; j += VL) {
      Vec<C> v = load<C>(sums + i * NV * VL + j);
      if (o.add) {
        v += load_edge<C>(out + i * o.N + j, o.N - n - j);
      }
      store_edge<C>(out + i * o.N + j, o.N - n - j, v);
    }
  }
}

// Fetch the part of `out` that a tile is added to. It may be as far away as main memory.
template <int NV, class S, class O>
RNNFAST_INLINE void prefetch_sums(const OuterProducts<S, O>& o, int64_t rows, int64_t m,
                                  int64_t n) {
  using C = Sum<O>;
  const C* const out = o.out + m * o.N + n;
  for (int i = 0; o.add && i < rows; ++i) {
    for (int j = 0; j < NV * kVector<C>; j += 64 / sizeof(C)) {
      __builtin_prefetch(out + i * o.N + j, 1);
    }
  }
}

#if !defined(RNNFAST_TILE_REGISTERS)
// Compute a tile of outer products. A row of p has its elements, or pairs, side by side; q is
// packed. The sums leave the registers through `result`, as in `accumulate`: a store that may end
// inside a vector calls memcpy, and GCC keeps accumulators in memory in a function that calls
// memcpy.
template <class O, int MR, int NV>
__attribute__((noinline)) static void accumulate_outer(const O* __restrict p, int64_t p_stride,
                                                       const O* __restrict q, int64_t K,
                                                       Sum<O>* __restrict result) {
  using C = Sum<O>;
  constexpr int VL = kVector<C>;
  Vec<C> acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) {
      acc[i][j] = Vec<C>{};
    }
  }
  for (int64_t k = 0; k < K; k += kPair<O>, p += p_stride, q += NV * VL * kPair<O>) {
    Vec<C> b[NV];
    load_packed<O, O, NV>(q, b);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < NV; ++j) {
        acc[i][j] = multiply_add<O>(acc[i][j], p + i * kPair<O>, b[j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) {
      store<C>(result + (i * NV + j) * VL, acc[i][j]);
    }
  }
}

// Compute MR rows from m on by NV vectors of columns from n on. p begins at its column m.
template <class S, class O, int MR, int NV>
static void outer_tile(const OuterProducts<S, O>& o, const O* p, int64_t p_stride, int64_t m,
                       int64_t n) {
  alignas(64) Sum<O> acc[MR * NV * kVector<Sum<O>>];
  prefetch_sums<NV>(o, MR, m, n);
  accumulate_outer<O, MR, NV>(p, p_stride, o.q + n * padded_depth<O>(o.K), o.K, acc);
  add_up<NV>(o, MR, m, n, acc);
}

// Compute the rows [m, m + rows) of the sums. They use the columns [m, m + rows) of p, which are
// spread over as many pages as p has rows and would miss the cache again and again. So if enough
// columns of q use them, they are first copied to a compact buffer. Products of pairs always need
// that copy to combine two rows of p.
template <class S, class O, int MR = RNNFAST_MAX_ROWS>
static void outer_rows(const OuterProducts<S, O>& o, int64_t rows, int64_t m) {
  if constexpr (MR > 1) {
    if (rows < MR) {
      return outer_rows<S, O, MR - 1>(o, rows, m);
    }
  }
  const O* p = o.p + m;
  int64_t p_stride = o.p_stride;
  alignas(64) O packed[(kOuterRows + 1) * MR];
  if (kPair<O> == 2 || o.N > 8 * kPanel<Sum<S>>) {
    for (int64_t k = 0; k < o.K; k += kPair<O>) {
      if constexpr (kPair<O> == 1) {
        std::memcpy(packed + k * MR, p + k * p_stride, MR * sizeof(O));
      } else {
        const O* const other = k + 1 < o.K ? p + (k + 1) * p_stride : nullptr;
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
          packed[k * MR + 2 * i] = p[k * p_stride + i];
          packed[k * MR + 2 * i + 1] = other != nullptr ? other[i] : O{};
        }
      }
    }
    p = packed, p_stride = MR * kPair<O>;
  }
  for (int64_t n = 0; n < o.N; n += kPanel<Sum<S>>) {
    if (o.N - n > kVector<Sum<S>>) {
      outer_tile<S, O, MR, 2>(o, p, p_stride, m, n);
    } else {
      outer_tile<S, O, MR, 1>(o, p, p_stride, m, n);
    }
  }
}
#else
#include "amx-inl.h"
#endif

template <class S, class O> static void outer_products(const OuterProducts<S, O>& o) {
  const int64_t blocks = (o.M + RNNFAST_MAX_ROWS - 1) / RNNFAST_MAX_ROWS;
  for (int64_t block = 0, m = 0; block < blocks; ++block) {
    const int64_t rows = (o.M - m) / (blocks - block);
    outer_rows<S, O>(o, rows, m);
    m += rows;
  }
}
