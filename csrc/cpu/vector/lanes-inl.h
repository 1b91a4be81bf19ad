// Vectors of RNNFAST_VECTOR_BYTES bytes: their types, and how they are loaded, stored and converted
// between 16-bit elements and float.

// The vector types of an element type, and the constants of its arithmetic in math-inl.h.

template <class T> struct Lanes;
template <> struct Lanes<float> {
  typedef uint16_t Half __attribute__((vector_size(RNNFAST_VECTOR_BYTES / 2), may_alias));
  typedef uint32_t Unsigned __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias));
  typedef float Vec __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias));
  typedef float Loose __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias, aligned(4)));
  typedef int32_t Bits __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias));
  static constexpr int kTaylor = 7, kMantissa = 23, kLogTerms = 8;
  static constexpr int32_t kOne = 0x3F800000, kSign = INT32_MIN;
  static constexpr int32_t kRootMagic = 0x5F3759DF; // 1 / sqrt(x) is near kRootMagic - bits / 2
  static constexpr float kMagic = 12582912.0f;      // 1.5 * 2^23
  static constexpr float kSaturated = 10.0f;        // from 9.02 on, tanh rounds to 1
  static constexpr float kLn2Hi = 0x1.62e4p-1f, kLn2Lo = 0x1.7f7d1cp-20f;
  static constexpr float kLeastExponent = -87.0f; // below it, exp is not a normal number
};
template <> struct Lanes<double> {
  typedef double Vec __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias));
  typedef double Loose __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias, aligned(8)));
  typedef int64_t Bits __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias));
  typedef uint64_t Unsigned __attribute__((vector_size(RNNFAST_VECTOR_BYTES), may_alias));
  static constexpr int kTaylor = 13, kMantissa = 52, kLogTerms = 17;
  static constexpr int64_t kOne = 0x3FF0000000000000, kSign = INT64_MIN;
  static constexpr int64_t kRootMagic = 0x5FE6EB50C7B537A9;
  static constexpr double kMagic = 6755399441055744.0; // 1.5 * 2^52
  static constexpr double kSaturated = 20.0;           // from 19.07 on, tanh rounds to 1
  static constexpr double kLn2Hi = 0x1.62e42fefap-1, kLn2Lo = 0x1.cf79abc9e3b3ap-40;
  static constexpr double kLeastExponent = -708.0;
};

// The elements of a vector, and the columns of a packed panel.
template <class T> constexpr int kVector = RNNFAST_VECTOR_BYTES / sizeof(T);
template <class T> constexpr int kPanel = 2 * kVector<T>;

template <class T> using Vec = typename Lanes<T>::Vec;

#define RNNFAST_INLINE static inline __attribute__((always_inline))

// Make GCC hold a loaded vector in a register. Otherwise GCC repeats the load in every multiply-add
// that uses the vector, and the loads then limit the speed of a tile of two or three rows.
template <class T> RNNFAST_INLINE void keep_in_register([[maybe_unused]] Vec<T>& v) {
#if defined(__x86_64__) && !defined(RNNFAST_EMULATED)
  __asm__("" : "+v"(v));
#elif defined(__aarch64__)
  __asm__("" : "+w"(v));
#endif
}

template <class T> RNNFAST_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Lanes<T>::Loose*>(p);
}
template <class T> RNNFAST_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Lanes<T>::Loose*>(p) = v;
}

// Convert a vector of 16-bit elements to float.
template <class S> RNNFAST_INLINE Vec<float> widen(typename Lanes<float>::Half half) {
  if constexpr (std::is_same_v<S, bfloat16>) {
    return (Vec<float>)(__builtin_convertvector(half, typename Lanes<float>::Unsigned) << 16);
  } else {
#if defined(RNNFAST_WIDEN_F16)
    return RNNFAST_WIDEN_F16(half);
#else
    using Bits = typename Lanes<float>::Bits;
    const Bits bits = (Bits) __builtin_convertvector(half, typename Lanes<float>::Unsigned);
    const Bits magnitude = (bits & 0x7FFF) << 13;
    // The exponent is moved to the place where float has it. The product changes its bias from 15
    // to 127.
    const Bits scaled = (Bits)((Vec<float>)magnitude * 0x1p112f);
    const Bits special = magnitude >= 0x0F800000; // infinity or NaN
    return (Vec<float>)(scaled | (special & 0x7F800000) | ((bits & 0x8000) << 16));
#endif
  }
}

// Round a vector of floats to 16-bit elements, to nearest, ties to even.
template <class S> RNNFAST_INLINE typename Lanes<float>::Half narrow(Vec<float> v) {
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
    // Below 2^-14 the last digit of a float16 is always 2^-24, which is also the last digit of a
    // float between 0.5 and 1. So adding 0.5 rounds to that digit.
    const Bits subnormal = (Bits)((Vec<float>)magnitude + 0.5f) - 0x3F000000;
    const Bits small = magnitude < 0x38800000, large = magnitude >= 0x477FF000;
    Bits result = (small & subnormal) | (~small & normal);
    result = (large & 0x7C00) | (~large & result);
    result = (nan & 0x7E00) | (~nan & result);
    result |= (Bits)((Unsigned)bits >> 16) & 0x8000;
    return __builtin_convertvector((Unsigned)result, Half);
#endif
  }
}

// Load elements of type S to a vector of Sum<S>, and store such a vector as elements of type S.
template <class S> RNNFAST_INLINE Vec<Sum<S>> load_as_sum(const S* p) {
  if constexpr (std::is_same_v<S, Sum<S>>) {
    return load<S>(p);
  } else {
    typename Lanes<float>::Half half;
    std::memcpy(&half, p, sizeof half);
    return widen<S>(half);
  }
}
template <class S> RNNFAST_INLINE void store_sum(S* p, Vec<Sum<S>> v) {
  if constexpr (std::is_same_v<S, Sum<S>>) {
    store<S>(p, v);
  } else {
    const typename Lanes<float>::Half half = narrow<S>(v);
    std::memcpy(p, &half, sizeof half);
  }
}

// Return one element as a Sum<S>.
template <class S> RNNFAST_INLINE Sum<S> element_as_sum(const S* p) {
  if constexpr (std::is_same_v<S, Sum<S>>) {
    return *p;
  } else {
    return widen<S>(typename Lanes<float>::Half{} + p->bits)[0];
  }
}

// Load the n elements at p, or a whole vector if there are more. Lanes after the end become zeros.
template <class S> RNNFAST_INLINE Vec<Sum<S>> load_edge(const S* p, int64_t n) {
  if (n >= kVector<Sum<S>>) {
    return load_as_sum<S>(p);
  }
  S edge[kVector<Sum<S>>] = {};
  std::memcpy(edge, p, n * sizeof(S));
  return load_as_sum<S>(edge);
}

// Store the first n lanes of a vector, or all if n is greater than their number.
template <class S> RNNFAST_INLINE void store_edge(S* p, int64_t n, Vec<Sum<S>> v) {
  if (n >= kVector<Sum<S>>) {
    store_sum<S>(p, v);
  } else {
    S edge[kVector<Sum<S>>];
    store_sum<S>(edge, v);
    std::memcpy(p, edge, n * sizeof(S));
  }
}

// The same, for code that knows at compile time that the vector is whole.
template <bool kWhole, class S> RNNFAST_INLINE Vec<Sum<S>> load_part(const S* p, int64_t n) {
  return kWhole ? load_as_sum<S>(p) : load_edge<S>(p, n);
}
template <bool kWhole, class S> RNNFAST_INLINE void store_part(S* p, int64_t n, Vec<Sum<S>> v) {
  kWhole ? store_sum<S>(p, v) : store_edge<S>(p, n, v);
}
