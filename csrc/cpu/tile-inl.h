// The fused step, written once: a tile of a matrix product and what becomes of it. Included by
// every isa_*.cpp inside a namespace of its own, after a target pragma, with RNNFAST_VECTOR_BYTES
// and RNNFAST_MAX_ROWS set. Plain GCC/Clang vector extensions: the width is the only thing that
// differs.
//
// A tile is MR rows by P panels of NV vectors. Its accumulators live in registers for the whole of
// K. K always runs from 0 up, one fused multiply-add at a time, whatever the tile: a row's result
// does not depend on the rows and columns it was computed with, hence not on the number of threads.

template <class T> struct Lanes;
template <> struct Lanes<float> {
  typedef float V __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias));
  typedef float Loose __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias, aligned(4)));
  typedef int32_t Bits __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias));
  static constexpr int kTaylor = 7, kMantissa = 23;
  static constexpr int32_t kOne = 0x3F800000, kSign = INT32_MIN;
  static constexpr float kMagic = 12582912.0f; // 1.5 * 2^23
  static constexpr float kSaturated = 10.0f;   // tanh is 1 to the last bit from 9.02
  static constexpr float kLn2Hi = 0x1.62e4p-1f, kLn2Lo = 0x1.7f7d1cp-20f;
};
template <> struct Lanes<double> {
  typedef double V __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias));
  typedef double Loose __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias, aligned(8)));
  typedef int64_t Bits __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias));
  static constexpr int kTaylor = 13, kMantissa = 52;
  static constexpr int64_t kOne = 0x3FF0000000000000, kSign = INT64_MIN;
  static constexpr double kMagic = 6755399441055744.0; // 1.5 * 2^52
  static constexpr double kSaturated = 20.0;           // tanh is 1 to the last bit from 19.07
  static constexpr double kLn2Hi = 0x1.62e42fefap-1, kLn2Lo = 0x1.cf79abc9e3b3ap-40;
};

template <class T> constexpr int kVector = RNNFAST_VECTOR_BYTES / sizeof(T);
template <class T> constexpr int kPanel = 2 * kVector<T>;

template <class T> using V = typename Lanes<T>::V;

#define RNNFAST_INLINE static inline __attribute__((always_inline))

// Makes GCC hold a loaded vector in a register. Left alone it folds the load into every
// multiply-add that uses it, and a tile of two or three rows is then bound by its loads.
template <class T> RNNFAST_INLINE void keep_in_register([[maybe_unused]] V<T>& v) {
#if defined(__x86_64__) && !defined(RNNFAST_EMULATED)
  __asm__("" : "+v"(v));
#endif
}

template <class T> RNNFAST_INLINE V<T> load(const T* p) {
  return *reinterpret_cast<const typename Lanes<T>::Loose*>(p);
}
template <class T> RNNFAST_INLINE void store(T* p, V<T> v) {
  *reinterpret_cast<typename Lanes<T>::Loose*>(p) = v;
}

// tanh |x| = (e - 1) / (e + 1) with e = exp 2|x| = 2^n exp r, |r| <= ln 2 / 2, and e - 1 computed
// as such, so that small x keep all their digits. Largest error seen: 1.99 units in the last place
// in float32, 2.39 in float64); NaN stays NaN.
template <class T> RNNFAST_INLINE V<T> tanh(V<T> x) {
  using L = Lanes<T>;
  using Bits = typename L::Bits;
  const Bits sign = (Bits)x & L::kSign;
  V<T> y = (V<T>)((Bits)x ^ sign);
  y = y > L::kSaturated ? V<T>{} + L::kSaturated : y;
  y = y + y;
  const V<T> shifted = y * T(1.44269504088896340736) + L::kMagic; // low bits: round(y / ln 2)
  const V<T> n = shifted - L::kMagic;
  const V<T> r = (y - n * L::kLn2Hi) - n * L::kLn2Lo;
  // exp r - 1 = r + r^2 (1/2! + r/3! + ...)
  T factorial = 1;
  T inverse[L::kTaylor + 1];
#pragma GCC unroll 16
  for (int i = 1; i <= L::kTaylor; ++i) {
    factorial *= T(i);
    inverse[i] = T(1) / factorial;
  }
  V<T> q = V<T>{} + inverse[L::kTaylor];
#pragma GCC unroll 16
  for (int i = L::kTaylor - 1; i >= 2; --i) {
    q = q * r + inverse[i];
  }
  const V<T> small = (q * r) * r + r;
  const V<T> power = (V<T>)(((Bits)shifted << L::kMantissa) + L::kOne);
  const V<T> e1 = power * small + (power - T(1));
  const V<T> result = e1 / (e1 + T(2));
  return (V<T>)((Bits)result | sign);
}

template <class T, Activation A> RNNFAST_INLINE V<T> activate(V<T> v, V<T> h) {
  switch (A) {
  case Activation::kTanh:
    return tanh<T>(v);
  case Activation::kRelu:
    return v < T(0) ? V<T>{} : v; // NaN stays NaN
  case Activation::kTanhGrad:
    return v * (T(1) - h * h);
  case Activation::kReluGrad:
    return h <= T(0) ? V<T>{} : v;
  case Activation::kIdentity:
    break;
  }
  return v;
}

// GCC keeps the accumulators in registers only if every loop over them is unrolled. Not inlined:
// each shape of tile gets the whole register file, and can be found in a disassembly.
template <class T, int MR, int P, int NV>
__attribute__((noinline)) static void accumulate(const T* __restrict a, int64_t a_stride,
                                                 const T* __restrict w, int64_t panel_size,
                                                 int64_t K, T* __restrict result) {
  constexpr int VL = kVector<T>;
  V<T> acc[MR][P * NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < P * NV; ++j) {
      acc[i][j] = V<T>{};
    }
  }
  for (int64_t k = 0; k < K; ++k) {
    V<T> b[P * NV];
#pragma GCC unroll 16
    for (int j = 0; j < P * NV; ++j) {
      b[j] = load<T>(w + (j / NV) * panel_size + (j % NV) * VL);
      if constexpr (MR > 1) {
        keep_in_register<T>(b[j]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < P * NV; ++j) {
        acc[i][j] += a[i * a_stride + k] * b[j];
      }
    }
    w += NV * VL;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < P * NV; ++j) {
      store<T>(result + (i * P * NV + j) * VL, acc[i][j]);
    }
  }
}

// How many panels a tile of so many rows takes side by side: enough accumulators to hide the
// latency of the multiply-add.
constexpr int panels_at_once(int64_t rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

template <class T, int P, int NV, int MR = RNNFAST_MAX_ROWS>
RNNFAST_INLINE void accumulate_rows(int64_t rows, const T* a, int64_t a_stride, const T* w,
                                    int64_t panel_size, int64_t K, T* result) {
  if constexpr (MR > 1) {
    if (rows < MR) {
      return accumulate_rows<T, P, NV, MR - 1>(rows, a, a_stride, w, panel_size, K, result);
    }
  }
  if constexpr (P <= panels_at_once(MR)) {
    accumulate<T, MR, P, NV>(a, a_stride, w, panel_size, K, result);
  }
}

// The n elements at p, or the first vector of them; zeros past the end.
template <class T> RNNFAST_INLINE V<T> load_edge(const T* p, int64_t n) {
  T edge[kVector<T>] = {};
  if (n >= kVector<T>) {
    return load<T>(p);
  }
  std::memcpy(edge, p, n * sizeof(T));
  return load<T>(edge);
}

template <class T> RNNFAST_INLINE void store_edge(T* p, int64_t n, V<T> v) {
  if (n >= kVector<T>) {
    store<T>(p, v);
  } else {
    T edge[kVector<T>];
    store<T>(edge, v);
    std::memcpy(p, edge, n * sizeof(T));
  }
}

// What becomes of the product `acc` [rows, width] of rows [row, row + rows) and columns
// [col, col + width): addends, activation, and out.
template <class T, Activation A>
static void finish(const Step<T>& s, int64_t row, int64_t rows, int64_t col, int64_t width,
                   const T* acc) {
  constexpr int VL = kVector<T>;
  constexpr bool kNeedsH = A == Activation::kTanhGrad || A == Activation::kReluGrad;
  for (int64_t i = row; i < row + rows; ++i, acc += width) {
    for (int64_t j = 0; j < width && col + j < s.N; j += VL) {
      const int64_t c = col + j;
      const int64_t n = s.N - c;
      V<T> v = load<T>(acc + j);
      V<T> h = {};
      if (s.addend != nullptr) {
        v += load_edge<T>(s.addend + i * s.addend_stride + c, n);
      }
      if (s.addend2 != nullptr) {
        v += load_edge<T>(s.addend2 + i * s.addend2_stride + c, n);
      }
      if constexpr (kNeedsH) {
        h = load_edge<T>(s.h + i * s.h_stride + c, n);
      }
      v = activate<T, A>(v, h);
      if (s.padded != nullptr) {
        store<T>(s.padded + i * s.padded_stride + c, v);
      }
      if (s.out != nullptr) {
        store_edge<T>(s.out + i * s.out_stride + c, n, v);
      }
    }
  }
}

template <class T>
using Finish = void (*)(const Step<T>&, int64_t, int64_t, int64_t, int64_t, const T*);

template <class T> static Finish<T> finisher(Activation act) {
  switch (act) {
  case Activation::kTanh:
    return finish<T, Activation::kTanh>;
  case Activation::kRelu:
    return finish<T, Activation::kRelu>;
  case Activation::kTanhGrad:
    return finish<T, Activation::kTanhGrad>;
  case Activation::kReluGrad:
    return finish<T, Activation::kReluGrad>;
  case Activation::kIdentity:
    break;
  }
  return finish<T, Activation::kIdentity>;
}

// Columns [col, col + P panels): all rows, in blocks of nearly equal height.
template <class T, int P, int NV>
static void columns(const Step<T>& s, int64_t col, Finish<T> finish_tile) {
  constexpr int64_t kWidth = int64_t(P) * NV * kVector<T>;
  alignas(64) T acc[RNNFAST_MAX_ROWS * kWidth];
  const int64_t blocks = (s.rows + RNNFAST_MAX_ROWS - 1) / RNNFAST_MAX_ROWS;
  for (int64_t block = 0, row = 0; block < blocks; ++block) {
    const int64_t rows = (s.rows - row) / (blocks - block);
    accumulate_rows<T, P, NV>(rows, s.a + row * s.a_stride, s.a_stride, s.w + col * s.K,
                              s.K * kPanel<T>, s.K, acc);
    finish_tile(s, row, rows, col, kWidth, acc);
    row += rows;
  }
}

template <class T> static void step(const Step<T>& s) {
  const Finish<T> finish_tile = finisher<T>(s.act);
  constexpr int64_t kWide = kPanel<T>;
  int64_t c = s.col_begin;
  if (s.col_end - s.col_begin <
      s.N) { // another thread has just written part of it: fetch it all at once
    for (int64_t i = 0; i < s.rows; ++i) {
      for (int64_t k = 0; k < s.K; k += 64 / sizeof(T)) {
        __builtin_prefetch(s.a + i * s.a_stride + k);
      }
    }
  }
  if (panels_at_once(s.rows) == 4) {
    for (; c + 4 * kWide <= s.col_end; c += 4 * kWide) {
      columns<T, 4, 2>(s, c, finish_tile);
    }
  }
  if (panels_at_once(s.rows) >= 2) {
    for (; c + 2 * kWide <= s.col_end; c += 2 * kWide) {
      columns<T, 2, 2>(s, c, finish_tile);
    }
  }
  for (; c + kVector<T> < s.col_end; c += kWide) {
    columns<T, 1, 2>(s, c, finish_tile);
  }
  if (c < s.col_end) {
    columns<T, 1, 1>(s, c, finish_tile);
  }
}

// Panel p holds columns [p * kPanel, ...) as [K][width]; the last is one vector wide where that is
// enough. Columns begin at packed + col * K.
template <class T>
static void pack(const T* w, bool transpose, int64_t K, int64_t N, int64_t col_begin,
                 int64_t col_end, T* packed) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t c = col_begin; c < col_end; c += kPanel<T>) {
    const int64_t used = N - c < kPanel<T> ? N - c : kPanel<T>;
    const int64_t width = used > kVector<T> ? kPanel<T> : kVector<T>;
    T* to = packed + c * K;
    if (used < width) {
      std::memset(to, 0, K * width * sizeof(T));
    }
    if (!transpose) {
      for (int64_t k = 0; k < K; ++k) {
        std::memcpy(to + k * width, w + k * N + c, used * sizeof(T));
      }
      continue;
    }
    // A cache line of each column at a time: with a power of two for K whole columns share a few
    // cache sets, and a line would be gone before its second element is read.
    for (int64_t k0 = 0; k0 < K; k0 += kLine) {
      const int64_t k1 = K - k0 < kLine ? K : k0 + kLine;
      for (int64_t j = 0; j < used; ++j) {
        for (int64_t k = k0; k < k1; ++k) {
          to[k * width + j] = w[(c + j) * K + k];
        }
      }
    }
  }
}

template <class T> static void pack_row(const T* row, int64_t k, int64_t K, int64_t N, T* packed) {
  constexpr int64_t VL = kVector<T>;
  for (int64_t c = 0; c < N; c += VL) {
    const int64_t panel = c / kPanel<T> * kPanel<T>;
    const int64_t width = N - panel > VL ? kPanel<T> : VL;
    store<T>(packed + panel * K + k * width + (c - panel),
             row != nullptr ? load_edge<T>(row + c, N - c) : V<T>{});
  }
}

// The same for a tile of outer products, both factors read row by row. The sums leave the registers
// through `result` here too: a store that may end inside a vector calls memcpy, and with that in
// sight GCC keeps accumulators in memory.
template <class T, int MR, int NV>
__attribute__((noinline)) static void accumulate_outer(const T* __restrict p, int64_t p_stride,
                                                       const T* __restrict q, int64_t K,
                                                       T* __restrict result) {
  constexpr int VL = kVector<T>;
  V<T> acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) {
      acc[i][j] = V<T>{};
    }
  }
  for (int64_t k = 0; k < K; ++k, p += p_stride, q += NV * VL) {
    V<T> b[NV];
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) {
      b[j] = load<T>(q + j * VL);
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < NV; ++j) {
        acc[i][j] += p[i] * b[j];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) {
      store<T>(result + (i * NV + j) * VL, acc[i][j]);
    }
  }
}

// MR rows of the sums from m on, NV vectors of columns from n on; p begins at column m. Blocks of K
// are added up one by one, which is also more accurate than a single long sum.
template <class T, int MR, int NV>
static void outer_tile(const Outer<T>& o, const T* p, int64_t p_stride, int64_t m, int64_t n) {
  constexpr int VL = kVector<T>;
  alignas(64) T acc[MR * NV * VL];
  T* const out = o.out + m * o.N + n;
  if (o.add) { // the sums so far may be as far away as memory
    for (int i = 0; i < MR; ++i) {
      for (int j = 0; j < NV * VL; j += 64 / sizeof(T)) {
        __builtin_prefetch(out + i * o.N + j, 1);
      }
    }
  }
  accumulate_outer<T, MR, NV>(p, p_stride, o.q + n * o.K, o.K, acc);
  for (int i = 0; i < MR; ++i) {
    for (int j = 0; j < NV * VL && n + j < o.N; j += VL) {
      V<T> v = load<T>(acc + i * NV * VL + j);
      if (o.add) {
        v += load_edge<T>(out + i * o.N + j, o.N - n - j);
      }
      store_edge<T>(out + i * o.N + j, o.N - n - j, v);
    }
  }
}

// Rows [m, m + rows) of the sums. Where enough columns will use them, their columns of p are first
// moved together: spread over as many pages as K they would miss the cache again and again.
template <class T, int MR = RNNFAST_MAX_ROWS>
static void outer_rows(const Outer<T>& o, int64_t rows, int64_t m) {
  if constexpr (MR > 1) {
    if (rows < MR) {
      return outer_rows<T, MR - 1>(o, rows, m);
    }
  }
  const T* p = o.p + m;
  int64_t p_stride = o.p_stride;
  alignas(64) T packed[kOuterRows * MR];
  if (o.N > 8 * kPanel<T>) {
    for (int64_t k = 0; k < o.K; ++k) {
      std::memcpy(packed + k * MR, p + k * p_stride, MR * sizeof(T));
    }
    p = packed, p_stride = MR;
  }
  for (int64_t n = 0; n < o.N; n += kPanel<T>) {
    if (o.N - n > kVector<T>) {
      outer_tile<T, MR, 2>(o, p, p_stride, m, n);
    } else {
      outer_tile<T, MR, 1>(o, p, p_stride, m, n);
    }
  }
}

template <class T> static void outer(const Outer<T>& o) {
  const int64_t blocks = (o.M + RNNFAST_MAX_ROWS - 1) / RNNFAST_MAX_ROWS;
  for (int64_t block = 0, m = 0; block < blocks; ++block) {
    const int64_t rows = (o.M - m) / (blocks - block);
    outer_rows<T>(o, rows, m);
    m += rows;
  }
}

template <class T> constexpr Kernels<T> table() {
  return {kVector<T>, kPanel<T>, pack<T>, pack_row<T>, step<T>, outer<T>};
}

#undef RNNFAST_INLINE
