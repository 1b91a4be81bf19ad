// Random numbers with a normal distribution. api/leaky.h defines them.

// Return the natural logarithm of u, a positive normal number.
template <class T> RNNFAST_INLINE Vec<T> log(Vec<T> u) {
  using L = Lanes<T>;
  using Bits = typename L::Bits;
  // u = 2^e m with m between sqrt(1/2) and sqrt(2).
  const Bits sqrt_half = (Bits)(Vec<T>{} + T(0.70710678118654752440));
  const Bits e = ((Bits)u - sqrt_half) >> L::kMantissa;
  const Vec<T> m = (Vec<T>)((Bits)u - (e << L::kMantissa));
  return __builtin_convertvector(e, Vec<T>) * T(0.69314718055994530942) +
         log_of_ratio<T, L::kTaylor - 2>((m - T(1)) / (m + T(1)));
}

// Return the square root of x, which is at least 0 and at most 2^60, by Newton's method for 1 /
// sqrt(x).
template <class T> RNNFAST_INLINE Vec<T> square_root(Vec<T> x) {
  using L = Lanes<T>;
  using Bits = typename L::Bits;
  Vec<T> y = (Vec<T>)(L::kRootMagic - ((Bits)x >> 1));
#pragma GCC unroll 16
  for (int i = 0; i < (sizeof(T) == 4 ? 3 : 4); ++i) {
    y = y * (T(1.5) - (x * T(0.5)) * y * y);
  }
  return x * y;
}

// Write cos(2 pi v) and sin(2 pi v) for v between -1/2 and 1/2.
template <class T> RNNFAST_INLINE void cos_and_sin(Vec<T> v, Vec<T>* cosine, Vec<T>* sine) {
  using L = Lanes<T>;
  using Bits = typename L::Bits;
  // The angle is a number of quarter turns and a rest of at most an eighth of a turn.
  const Vec<T> shifted = v * T(4) + L::kMagic;
  const Vec<T> a = (v - (shifted - L::kMagic) * T(0.25)) * T(6.28318530717958647693);
  const Vec<T> a2 = a * a;
  constexpr int kTerms = sizeof(T) == 4 ? 5 : 9; // of both series
  T factorial = 1;
  T inverse[2 * kTerms + 2]; // with the signs of the series
#pragma GCC unroll 32
  for (int i = 0; i < 2 * kTerms + 2; ++i) {
    factorial *= T(i < 1 ? 1 : i);
    inverse[i] = (i / 2 % 2 == 0 ? T(1) : T(-1)) / factorial;
  }
  Vec<T> c = Vec<T>{} + inverse[2 * kTerms], s = Vec<T>{} + inverse[2 * kTerms + 1];
#pragma GCC unroll 16
  for (int i = kTerms - 1; i >= 0; --i) {
    c = c * a2 + inverse[2 * i];
    s = s * a2 + inverse[2 * i + 1];
  }
  s *= a;
  const Bits quarter = (Bits)shifted & 3; // the low bits of the number of quarter turns
  const Bits odd = (quarter & 1) != 0;
  const Bits swapped_c = (Bits)(odd ? s : c), swapped_s = (Bits)(odd ? c : s);
  const Bits negative_c = ((quarter + 1) & 2) != 0, negative_s = (quarter & 2) != 0;
  *cosine = (Vec<T>)(swapped_c ^ (negative_c & L::kSign));
  *sine = (Vec<T>)(swapped_s ^ (negative_s & L::kSign));
}

// The words [first, first + VL) of SplitMix64, two in each output, one in each lane. `first` is
// even.
template <class T> RNNFAST_INLINE typename Lanes<T>::Unsigned words(uint64_t seed, uint64_t first) {
  constexpr uint64_t kGamma = 0x9E3779B97F4A7C15;    // the step from state to state
  constexpr int kPerOutput = sizeof(T) == 4 ? 1 : 2; // lanes of 64 bits hold one word only
  Counters state{};
  [[maybe_unused]] Counters half{};
#pragma GCC unroll 16
  for (int i = 0; i < kVector<double>; ++i) {
    state[i] = uint64_t(i / kPerOutput) * kGamma;
    half[i] = i % kPerOutput * 32;
  }
  state += seed + (first / 2 + 1) * kGamma;
  const Counters outputs = mix(state);
  if constexpr (kPerOutput == 1) { // the two halves of an output are in adjacent lanes
    return (typename Lanes<T>::Unsigned)outputs;
  } else {
    return outputs >> half & 0xFFFFFFFF;
  }
}

// See VectorKernels::add_normal.
template <class C>
static void add_normal(uint64_t seed, int64_t row, int64_t begin, int64_t end, int64_t N,
                       const C* scale, C* sums) {
  using L = Lanes<C>;
  constexpr int VL = kVector<C>;
  constexpr int64_t kHalf = 16, kBlock = 2 * kHalf;
  const int64_t blocks = (N + kBlock - 1) / kBlock;
  for (int64_t q = begin / kBlock; q * kBlock < end; ++q) {
    const uint64_t first = uint64_t(row * blocks + q) * kBlock;
    for (int64_t j = 0; j < kHalf; j += VL) {
      const auto x = words<C>(seed, first + j), y = words<C>(seed, first + kHalf + j);
      const Vec<C> u = __builtin_convertvector((typename L::Bits)(x >> 8) + 1, Vec<C>);
      // A word is a signed number of 32 bits.
      const auto moved = (typename L::Bits)(y << (8 * sizeof(C) - 32));
      const Vec<C> v = __builtin_convertvector(moved >> (8 * sizeof(C) - 32), Vec<C>) * C(0x1p-32);
      const Vec<C> radius = square_root<C>(log<C>(u * C(0x1p-24)) * C(-2));
      Vec<C> numbers[2];
      cos_and_sin<C>(v, &numbers[0], &numbers[1]);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const int64_t c = q * kBlock + half * kHalf + j;
        if (c + VL <= begin || c >= end) {
          continue;
        }
        const Vec<C> n = numbers[half] * radius;
        if (c >= begin && c + VL <= end) {
          store<C>(sums + c, load<C>(sums + c) + n * load<C>(scale + c));
        } else {
          for (int i = 0; i < VL; ++i) {
            if (c + i >= begin && c + i < end) {
              sums[c + i] += n[i] * scale[c + i];
            }
          }
        }
      }
    }
  }
}
