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
  typedef uint16_t Half __attribute__((vector_size(RNNFAST_VECTOR_BYTES / 2), may_alias));
  typedef uint32_t Unsigned __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias));
  typedef float V __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias));
  typedef float Loose __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias, aligned(4)));
  typedef int32_t Bits __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias));
  static constexpr int kTaylor = 7, kMantissa = 23;
  static constexpr int32_t kOne = 0x3F800000, kSign = INT32_MIN;
  static constexpr float kMagic = 12582912.0f; // 1.5 * 2^23
  static constexpr float kSaturated = 10.0f;   // tanh is 1 to the last bit from 9.02
  static constexpr float kLn2Hi = 0x1.62e4p-1f, kLn2Lo = 0x1.7f7d1cp-20f;
  static constexpr float kLeastExponent = -87.0f; // of a normal number
};
template <> struct Lanes<double> {
  typedef double V __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias));
  typedef double Loose __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias, aligned(8)));
  typedef int64_t Bits __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias));
  typedef uint64_t Unsigned __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias));
  static constexpr int kTaylor = 13, kMantissa = 52;
  static constexpr int64_t kOne = 0x3FF0000000000000, kSign = INT64_MIN;
  static constexpr double kMagic = 6755399441055744.0; // 1.5 * 2^52
  static constexpr double kSaturated = 20.0;           // tanh is 1 to the last bit from 19.07
  static constexpr double kLn2Hi = 0x1.62e42fefap-1, kLn2Lo = 0x1.cf79abc9e3b3ap-40;
  static constexpr double kLeastExponent = -708.0;
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

// A vector of 16-bit elements as float.
template <class S> RNNFAST_INLINE V<float> widen(typename Lanes<float>::Half half) {
  if constexpr (std::is_same_v<S, bfloat16>) {
    return (V<float>)(__builtin_convertvector(half, typename Lanes<float>::Unsigned) << 16);
  } else {
#if defined(RNNFAST_WIDEN_F16)
    return RNNFAST_WIDEN_F16(half);
#else
    using Bits = typename Lanes<float>::Bits;
    const Bits bits = (Bits) __builtin_convertvector(half, typename Lanes<float>::Unsigned);
    const Bits magnitude = (bits & 0x7FFF) << 13;
    // The exponent moved to float's place, then scaled from bias 15 to bias 127.
    const Bits scaled = (Bits)((V<float>)magnitude * 0x1p112f);
    const Bits special = magnitude >= 0x0F800000; // infinity or NaN
    return (V<float>)(scaled | (special & 0x7F800000) | ((bits & 0x8000) << 16));
#endif
  }
}

// Rounded to nearest, ties to even.
template <class S> RNNFAST_INLINE typename Lanes<float>::Half narrow(V<float> v) {
  using Bits = typename Lanes<float>::Bits;
  using Unsigned = typename Lanes<float>::Unsigned;
  using Half = typename Lanes<float>::Half;
  const Bits bits = (Bits)v, magnitude = bits & 0x7FFFFFFF;
  const Bits nan = magnitude > 0x7F800000;
  if constexpr (std::is_same_v<S, bfloat16>) {
#if defined(RNNFAST_NARROW_BF16)
    return RNNFAST_NARROW_BF16(v);
#else
    const Unsigned rounded = (Unsigned)bits + 0x7FFF + (((Unsigned)bits >> 16) & 1);
    const Unsigned result =
        ((Unsigned)nan & ((Unsigned)bits | 0x400000)) | (~(Unsigned)nan & rounded);
    return __builtin_convertvector(result >> 16, Half);
#endif
  } else {
#if defined(RNNFAST_NARROW_F16)
    return RNNFAST_NARROW_F16(v);
#else
    const Bits normal = (magnitude + 0xFFF + ((magnitude >> 13) & 1) - (112 << 23)) >> 13;
    // Under 2^-14 the last digit is worth 2^-24 always, as it is in a float from 0.5 on.
    const Bits subnormal = (Bits)((V<float>)magnitude + 0.5f) - 0x3F000000;
    const Bits small = magnitude < 0x38800000, large = magnitude >= 0x477FF000;
    Bits result = (small & subnormal) | (~small & normal);
    result = (large & 0x7C00) | (~large & result);
    result = (nan & 0x7E00) | (~nan & result);
    result |= (Bits)((Unsigned)bits >> 16) & 0x8000;
    return __builtin_convertvector((Unsigned)result, Half);
#endif
  }
}

// Elements of type S in memory, a vector of Sum<S> in registers.
template <class S> RNNFAST_INLINE V<Sum<S>> load_as_sum(const S* p) {
  if constexpr (std::is_same_v<S, Sum<S>>) {
    return load<S>(p);
  } else {
    typename Lanes<float>::Half half;
    std::memcpy(&half, p, sizeof half);
    return widen<S>(half);
  }
}
template <class S> RNNFAST_INLINE void store_sum(S* p, V<Sum<S>> v) {
  if constexpr (std::is_same_v<S, Sum<S>>) {
    store<S>(p, v);
  } else {
    const typename Lanes<float>::Half half = narrow<S>(v);
    std::memcpy(p, &half, sizeof half);
  }
}

// Of two rows of bfloat16 the elements of each lane side by side, as products of pairs take them.
RNNFAST_INLINE V<float> pairs(V<float> first, V<float> second) {
  using Unsigned = typename Lanes<float>::Unsigned;
  return (V<float>)((Unsigned)first >> 16 | (Unsigned)second);
}

// exp y = power (1 + small), power = 2^n and small = exp r - 1, |r| <= ln 2 / 2.
template <class T> struct Exponential {
  V<T> power, small;
};
template <class T> RNNFAST_INLINE Exponential<T> exponential(V<T> y) {
  using L = Lanes<T>;
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
  const V<T> power = (V<T>)(((typename L::Bits)shifted << L::kMantissa) + L::kOne);
  return {power, (q * r) * r + r};
}

// tanh |x| = (e - 1) / (e + 1) with e = exp 2|x|, and e - 1 computed as such, so that small x keep
// all their digits. Largest error seen: 1.99 units in the last place in float32, 2.39 in float64;
// NaN stays NaN.
template <class T> RNNFAST_INLINE V<T> tanh(V<T> x) {
  using L = Lanes<T>;
  using Bits = typename L::Bits;
  const Bits sign = (Bits)x & L::kSign;
  V<T> y = (V<T>)((Bits)x ^ sign);
  y = y > L::kSaturated ? V<T>{} + L::kSaturated : y;
  const Exponential<T> e = exponential<T>(y + y);
  const V<T> e1 = e.power * e.small + (e.power - T(1));
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

// The elements of O that meet in one multiply-add of one lane.
template <class O> constexpr int kPair = std::is_same_v<O, bfloat16> ? 2 : 1;

// How a right factor is packed. Panels of NV vectors of columns; in a panel row by row or, for
// products of pairs, pair of rows by pair of rows, the two elements of a column side by side. A row
// of 16-bit elements that are to be widened is one vector of the whole panel's width, so those
// panels are never narrow.
template <class S, class O> constexpr bool kWidened = sizeof(S) < sizeof(O);
template <class S, class O> constexpr int panel_width(int64_t columns) {
  return kWidened<S, O> || columns > kVector<Sum<S>> ? kPanel<Sum<S>> : kVector<Sum<S>>;
}
template <class O> constexpr int64_t packed_rows(int64_t K) {
  return (K + kPair<O> - 1) / kPair<O> * kPair<O>;
}
// Where in a panel element j of row k is.
template <class S, class O> constexpr int64_t packed_at(int64_t k, int64_t j, int64_t width) {
  if (kPair<O> == 2) {
    return (k / 2 * width + j) * 2 + k % 2;
  }
#if !defined(RNNFAST_WIDEN_F16)
  constexpr bool interleaved = kWidened<S, O>;
#else
  constexpr bool interleaved = std::is_same_v<S, bfloat16> && kWidened<S, O>;
#endif
  // In the two halves of the lanes of one vector, columns j and j + kVector: widening takes one
  // operation each.
  return k * width + (interleaved ? j % kVector<Sum<S>> * 2 + j / kVector<Sum<S>> : j);
}

// The NV vectors of a packed row, or pair of rows, as the multiply-add takes them.
template <class S, class O, int NV> RNNFAST_INLINE void load_packed(const S* w, V<Sum<S>>* b) {
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
      b[0] = (V<float>)(both << 16), b[1] = (V<float>)(both & 0xFFFF0000);
    } else {
      using Half = typename Lanes<float>::Half;
      b[0] = widen<S>(__builtin_convertvector(both & 0xFFFF, Half));
      b[1] = widen<S>(__builtin_convertvector(both >> 16, Half));
    }
  }
}

// sum + a b, for every lane with the same element, or pair, of a.
template <class O> RNNFAST_INLINE V<Sum<O>> multiply_add(V<Sum<O>> sum, const O* a, V<Sum<O>> b) {
  if constexpr (kPair<O> == 1) {
    return sum + *a * b;
  } else {
#if defined(RNNFAST_MULTIPLY_ADD_PAIRS)
    return RNNFAST_MULTIPLY_ADD_PAIRS(sum, a, b);
#endif
  }
}

// GCC keeps the accumulators in registers only if every loop over them is unrolled. Not inlined:
// each shape of tile gets the whole register file, and can be found in a disassembly.
template <class S, class O, int MR, int P, int NV>
__attribute__((noinline)) static void accumulate(const O* __restrict a, int64_t a_stride,
                                                 const S* __restrict w, int64_t panel_size,
                                                 int64_t K, Sum<S>* __restrict result) {
  using C = Sum<S>;
  constexpr int VL = kVector<C>;
  V<C> acc[MR][P * NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < P * NV; ++j) {
      acc[i][j] = V<C>{};
    }
  }
  for (int64_t k = 0; k < K; k += kPair<O>) {
    V<C> b[P * NV];
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

// How many panels a tile of so many rows takes side by side: enough accumulators to hide the
// latency of the multiply-add.
constexpr int panels_at_once(int64_t rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

#if !defined(RNNFAST_TILES)
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
#else // amx-inl.h has it
template <class S, class O, int P, int NV>
static void accumulate_rows(int64_t rows, const O* a, int64_t a_stride, const S* w,
                            int64_t panel_size, int64_t K, Sum<S>* result);
#endif

// The n elements at p, or the first vector of them; zeros past the end.
template <class S> RNNFAST_INLINE V<Sum<S>> load_edge(const S* p, int64_t n) {
  if (n >= kVector<Sum<S>>) {
    return load_as_sum<S>(p);
  }
  S edge[kVector<Sum<S>>] = {};
  std::memcpy(edge, p, n * sizeof(S));
  return load_as_sum<S>(edge);
}

template <class S> RNNFAST_INLINE void store_edge(S* p, int64_t n, V<Sum<S>> v) {
  if (n >= kVector<Sum<S>>) {
    store_sum<S>(p, v);
  } else {
    S edge[kVector<Sum<S>>];
    store_sum<S>(edge, v);
    std::memcpy(p, edge, n * sizeof(S));
  }
}

template <bool kWhole, class S> RNNFAST_INLINE V<Sum<S>> load_part(const S* p, int64_t n) {
  return kWhole ? load_as_sum<S>(p) : load_edge<S>(p, n);
}
template <bool kWhole, class S> RNNFAST_INLINE void store_part(S* p, int64_t n, V<Sum<S>> v) {
  kWhole ? store_sum<S>(p, v) : store_edge<S>(p, n, v);
}

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

// The vectors at `from`, `stride` bytes from one to the next, as many as each has lanes: the i-th
// lanes of all become the i-th vector of `to`.
template <class T>
RNNFAST_INLINE void transpose_block(const void* from, int64_t stride, T* to, int64_t to_stride) {
  constexpr int VL = kVector<T>;
  V<T> rows[VL];
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) {
    std::memcpy(&rows[i], static_cast<const char*>(from) + i * stride, sizeof rows[i]);
  }
#pragma GCC unroll 4
  for (int step = 1; step < VL; step *= 2) {
    typename Lanes<T>::Bits low{}, high{}; // lanes of b are numbered after those of a
#pragma GCC unroll 16
    for (int i = 0; i < VL; ++i) {
      low[i] = i & step ? VL + i - step : i;
      high[i] = i & step ? VL + i : i + step;
    }
#pragma GCC unroll 16
    for (int i = 0; i < VL; ++i) {
      if ((i & step) == 0) {
        const V<T> a = rows[i], b = rows[i + step];
        rows[i] = __builtin_shuffle(a, b, low);
        rows[i + step] = __builtin_shuffle(a, b, high);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) {
    store<T>(to + i * to_stride, rows[i]);
  }
}

// Panel p holds columns [p * kPanel, ...); its elements are where packed_at says, and begin at
// packed + column * packed_rows. The last is one vector wide where that is enough.
template <class S, class O>
static void pack(const S* w, bool transpose, int64_t K, int64_t N, int64_t col_begin,
                 int64_t col_end, S* packed) {
  using C = Sum<S>;
  constexpr int64_t kLine = 64 / sizeof(S), kWide = kPanel<C>;
  for (int64_t c = col_begin; c < col_end; c += kWide) {
    const int64_t used = N - c < kWide ? N - c : kWide;
    const int64_t width = panel_width<S, O>(used), depth = packed_rows<O>(K);
    S* to = packed + c * depth;
    if (used < width || K < depth) {
      std::memset(static_cast<void*>(to), 0, depth * width * sizeof(S));
    }
    int64_t k_done = 0, j_done = 0; // so many rows of so many columns by whole vectors
    if (!transpose) {
      if constexpr (kPair<O> == 2) {
        k_done = K / 2 * 2, j_done = used / kVector<C> * kVector<C>;
        for (int64_t k = 0; k < k_done; k += 2) {
          for (int64_t j = 0; j < j_done; j += kVector<C>) {
            const S* const from = w + k * N + c + j;
            const V<C> both = pairs(load_as_sum<S>(from), load_as_sum<S>(from + N));
            store<C>(reinterpret_cast<C*>(to + packed_at<S, O>(k, j, width)), both);
          }
        }
      }
      for (int64_t k = 0; k < K; ++k) {
        if constexpr (std::is_same_v<S, O> && kPair<O> == 1) {
          std::memcpy(to + k * width, w + k * N + c, used * sizeof(S));
        } else {
          for (int64_t j = k < k_done ? j_done : 0; j < used; ++j) {
            to[packed_at<S, O>(k, j, width)] = w[k * N + c + j];
          }
        }
      }
      continue;
    }
#if !defined(__clang__)              // has no __builtin_shuffle
    if constexpr (!kWidened<S, O>) { // an element, or a pair, is packed as it stands
      k_done = K / kLine * kLine, j_done = used / kVector<C> * kVector<C>;
      for (int64_t k = 0; k < k_done; k += kVector<C> * kPair<O>) {
        for (int64_t j = 0; j < j_done; j += kVector<C>) {
          transpose_block<C>(w + (c + j) * K + k, K * sizeof(S),
                             reinterpret_cast<C*>(to + packed_at<S, O>(k, j, width)), width);
        }
      }
    }
#endif
    // A cache line of each column at a time: with a power of two for K whole columns share a few
    // cache sets, and a line would be gone before its second element is read.
    for (int64_t k0 = 0; k0 < K; k0 += kLine) {
      const int64_t k1 = K - k0 < kLine ? K : k0 + kLine;
      for (int64_t j = k0 < k_done ? j_done : 0; j < used; ++j) {
        for (int64_t k = k0; k < k1; ++k) {
          to[packed_at<S, O>(k, j, width)] = w[(c + j) * K + k];
        }
      }
    }
  }
}

// The right factors of Outer are packed as they are multiplied: as O. Eight rows at a time, for one
// alone would go to as many places, all in the same cache sets, as there are panels.
template <class S, class O>
static void pack_rows(const S* const* rows, int64_t K, int64_t N, O* packed) {
  using C = Sum<S>;
  constexpr int64_t VL = kVector<C>, kRows = 8;
  const int64_t depth = packed_rows<O>(K);
  for (int64_t k0 = 0; k0 < K; k0 += kRows) {
    for (int64_t c = 0; c < N; c += VL) {
      const int64_t panel = c / kPanel<C> * kPanel<C>;
      const int64_t width = panel_width<O, O>(N - panel);
      for (int64_t k = k0; k < K && k < k0 + kRows; k += kPair<O>) {
        V<C> v = rows[k] != nullptr ? load_edge<S>(rows[k] + c, N - c) : V<C>{};
        if constexpr (kPair<O> == 2) {
          const S* const other = k + 1 < K ? rows[k + 1] : nullptr;
          v = pairs(v, other != nullptr ? load_edge<S>(other + c, N - c) : V<C>{});
        }
        O* const to = packed + panel * depth + packed_at<O, O>(k, c - panel, width);
        store<C>(reinterpret_cast<C*>(to), v);
      }
    }
  }
}

template <class S, class O> static void widen_row(const S* row, int64_t n, O* operand) {
  for (int64_t c = 0; c < n; c += kVector<Sum<S>>) {
    store_sum<O>(operand + c, load_edge<S>(row + c, n - c));
  }
}

// The vector of a row of n elements that begins at element c; minus infinity past the end.
template <class T> RNNFAST_INLINE V<T> load_or_lowest(const T* row, int64_t c, int64_t n) {
  V<T> v = load<T>(row + c);
  if (n - c < kVector<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < kVector<T>; ++i) {
      v[i] = i < n - c ? v[i] : -T(__builtin_inf());
    }
  }
  return v;
}

template <class T> static void exponentials(T* row, int64_t n, T* max, T* sum) {
  constexpr int VL = kVector<T>;
  const T lowest = -T(__builtin_inf());
  V<T> largest = V<T>{} + lowest;
  for (int64_t c = 0; c < n; c += VL) {
    const V<T> x = load_or_lowest<T>(row, c, n);
    largest = x > largest ? x : largest;
  }
  T most = lowest;
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) {
    most = largest[i] > most ? largest[i] : most;
  }
  *max = most;
  const T shift = most == lowest ? T(0) : most;
  V<T> sums = {};
  for (int64_t c = 0; c < n; c += VL) {
    const V<T> x = load_or_lowest<T>(row, c, n) - shift;
    const Exponential<T> e = exponential<T>(x);
    const V<T> result = x < Lanes<T>::kLeastExponent ? V<T>{} : e.power * e.small + e.power;
    sums += result;
    store<T>(row + c, result);
  }
  *sum = 0;
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) {
    *sum += sums[i];
  }
}

template <class S> static void narrow_row(const Sum<S>* row, int64_t n, S* out) {
  for (int64_t c = 0; c < n; c += kVector<Sum<S>>) {
    store_edge<S>(out + c, n - c, load_edge<Sum<S>>(row + c, n - c));
  }
}

// Sums of outer products, [rows, NV vectors], are added to those from row m and column n on. Blocks
// of K are added up one by one, which is also more accurate than a single long sum.
template <int NV, class S, class O>
RNNFAST_INLINE void add_up(const Outer<S, O>& o, int64_t rows, int64_t m, int64_t n,
                           const Sum<O>* sums) {
  using C = Sum<O>;
  constexpr int VL = kVector<C>;
  C* const out = o.out + m * o.N + n;
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < NV * VL && n + j < o.N; j += VL) {
      V<C> v = load<C>(sums + i * NV * VL + j);
      if (o.add) {
        v += load_edge<C>(out + i * o.N + j, o.N - n - j);
      }
      store_edge<C>(out + i * o.N + j, o.N - n - j, v);
    }
  }
}

// Those to be added to may be as far away as memory.
template <int NV, class S, class O>
RNNFAST_INLINE void prefetch_sums(const Outer<S, O>& o, int64_t rows, int64_t m, int64_t n) {
  using C = Sum<O>;
  const C* const out = o.out + m * o.N + n;
  for (int i = 0; o.add && i < rows; ++i) {
    for (int j = 0; j < NV * kVector<C>; j += 64 / sizeof(C)) {
      __builtin_prefetch(out + i * o.N + j, 1);
    }
  }
}

#if !defined(RNNFAST_TILES)
// The same for a tile of outer products: p has the elements, or pairs, of a row side by side, q is
// packed. The sums leave the registers through `result` here too: a store that may end inside a
// vector calls memcpy, and with that in sight GCC keeps accumulators in memory.
template <class O, int MR, int NV>
__attribute__((noinline)) static void accumulate_outer(const O* __restrict p, int64_t p_stride,
                                                       const O* __restrict q, int64_t K,
                                                       Sum<O>* __restrict result) {
  using C = Sum<O>;
  constexpr int VL = kVector<C>;
  V<C> acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) {
      acc[i][j] = V<C>{};
    }
  }
  for (int64_t k = 0; k < K; k += kPair<O>, p += p_stride, q += NV * VL * kPair<O>) {
    V<C> b[NV];
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

// MR rows of the sums from m on, NV vectors of columns from n on; p begins at column m.
template <class S, class O, int MR, int NV>
static void outer_tile(const Outer<S, O>& o, const O* p, int64_t p_stride, int64_t m, int64_t n) {
  alignas(64) Sum<O> acc[MR * NV * kVector<Sum<O>>];
  prefetch_sums<NV>(o, MR, m, n);
  accumulate_outer<O, MR, NV>(p, p_stride, o.q + n * packed_rows<O>(o.K), o.K, acc);
  add_up<NV>(o, MR, m, n, acc);
}

// Rows [m, m + rows) of the sums. Where enough columns will use them, their columns of p are first
// moved together: spread over as many pages as K they would miss the cache again and again. Pairs
// have to be made anyway.
template <class S, class O, int MR = RNNFAST_MAX_ROWS>
static void outer_rows(const Outer<S, O>& o, int64_t rows, int64_t m) {
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

template <class S, class O> static void outer(const Outer<S, O>& o) {
  const int64_t blocks = (o.M + RNNFAST_MAX_ROWS - 1) / RNNFAST_MAX_ROWS;
  for (int64_t block = 0, m = 0; block < blocks; ++block) {
    const int64_t rows = (o.M - m) / (blocks - block);
    outer_rows<S, O>(o, rows, m);
    m += rows;
  }
}

#include "dropout-inl.h"
#include "glove-inl.h"

template <class S, class O> constexpr Kernels<S, O> table() {
  return {kVector<Sum<S>>, kPanel<Sum<S>>,       pack<S, O>, pack_rows<S, O>, widen_row<S, O>,
          narrow_row<S>,   exponentials<Sum<S>>, step<S, O>, outer<S, O>,     dropout<S>};
}

template <class = void> constexpr Tables tables() {
  return {table<float, float>(), table<double, double>(), table<bfloat16, float>(),
          table<float16, float>(), glove_update<float>};
}

#undef RNNFAST_INLINE
