// The elementary functions: exp, tanh, the activations with their derivatives, and the exponentials
// of a row for a softmax.

// exp y = power (1 + small), where power = 2^n, small = exp r - 1 and |r| <= ln 2 / 2.
template <class T> struct Exponential {
  Vec<T> power, small;
};
template <class T> RNNFAST_INLINE Exponential<T> exponential(Vec<T> y) {
  using L = Lanes<T>;
  // Adding kMagic puts n = round(y / ln 2) into the low bits.
  const Vec<T> shifted = y * T(1.44269504088896340736) + L::kMagic;
  const Vec<T> n = shifted - L::kMagic;
  const Vec<T> r = (y - n * L::kLn2Hi) - n * L::kLn2Lo;
  // exp r - 1 = r + r^2 (1/2! + r/3! + ...)
  T factorial = 1;
  T inverse[L::kTaylor + 1];
#pragma GCC unroll 16
  for (int i = 1; i <= L::kTaylor; ++i) {
    factorial *= T(i);
    inverse[i] = T(1) / factorial;
  }
  Vec<T> q = Vec<T>{} + inverse[L::kTaylor];
#pragma GCC unroll 16
  for (int i = L::kTaylor - 1; i >= 2; --i) {
    q = q * r + inverse[i];
  }
  const Vec<T> power = (Vec<T>)(((typename L::Bits)shifted << L::kMantissa) + L::kOne);
  return {power, (q * r) * r + r};
}

// tanh |x| = (e - 1) / (e + 1) with e = exp 2|x|. e - 1 is computed without computing e first, so
// that the result for a small x keeps all its digits. The largest error seen is 2.08 units in the
// last place in float32 and 2.45 in float64. NaN stays NaN.
template <class T> RNNFAST_INLINE Vec<T> tanh(Vec<T> x) {
  using L = Lanes<T>;
  using Bits = typename L::Bits;
  const Bits sign = (Bits)x & L::kSign;
  Vec<T> y = (Vec<T>)((Bits)x ^ sign);
  y = y > L::kSaturated ? Vec<T>{} + L::kSaturated : y;
  const Exponential<T> e = exponential<T>(y + y);
  const Vec<T> e1 = e.power * e.small + (e.power - T(1));
  const Vec<T> result = e1 / (e1 + T(2));
  return (Vec<T>)((Bits)result | sign);
}

// exp -y for y >= 0. Below the smallest normal number it stays there. NaN stays NaN.
template <class T> RNNFAST_INLINE Exponential<T> decay(Vec<T> y) {
  const Vec<T> most = Vec<T>{} - Lanes<T>::kLeastExponent;
  return exponential<T>(y > most ? -most : -y);
}

// |x|, also of NaN.
template <class T> RNNFAST_INLINE Vec<T> magnitude(Vec<T> x) {
  return (Vec<T>)((typename Lanes<T>::Bits)x & ~Lanes<T>::kSign);
}

// 1 / (1 + exp -x), by way of exp -|x|, which cannot overflow.
template <class T> RNNFAST_INLINE Vec<T> sigmoid(Vec<T> x) {
  const Exponential<T> d = decay<T>(magnitude<T>(x));
  const Vec<T> e = d.power * d.small + d.power;
  return (x < T(0) ? e : Vec<T>{} + T(1)) / (e + T(1));
}

// ln((1 + s) / (1 - s)) = 2 (s + s^3 / 3 + s^5 / 5 + ...), with kTerms terms.
template <class T, int kTerms> RNNFAST_INLINE Vec<T> log_of_ratio(Vec<T> s) {
  const Vec<T> s2 = s * s;
  Vec<T> q = Vec<T>{} + T(2) / T(2 * kTerms - 1);
#pragma GCC unroll 32
  for (int i = kTerms - 2; i >= 0; --i) {
    q = q * s2 + T(2) / T(2 * i + 1);
  }
  return q * s;
}

// ln(1 + exp x) = max(x, 0) + ln(1 + exp -|x|). For e <= 1, ln(1 + e) = ln((1 + s) / (1 - s)) with
// s = e / (2 + e) <= 1/3.
template <class T> RNNFAST_INLINE Vec<T> softplus(Vec<T> x) {
  const Exponential<T> d = decay<T>(magnitude<T>(x));
  const Vec<T> e = d.power * d.small + d.power;
  const Vec<T> positive = x < T(0) ? Vec<T>{} : x; // NaN stays NaN
  return positive + log_of_ratio<T, Lanes<T>::kLogTerms>(e / (e + T(2)));
}

// The derivative of softplus from its value y: 1 - exp -y, with all digits also for a small y.
template <class T> RNNFAST_INLINE Vec<T> softplus_derivative(Vec<T> y) {
  const Exponential<T> d = decay<T>(y);
  return (T(1) - d.power) - d.power * d.small;
}

// Apply the activation A to v. The gradients read the output h of the forward pass.
template <class T, Activation A> RNNFAST_INLINE Vec<T> activate(Vec<T> v, Vec<T> h) {
  switch (A) {
  case Activation::kTanh:
    return tanh<T>(v);
  case Activation::kRelu:
    return v < T(0) ? Vec<T>{} : v; // NaN stays NaN
  case Activation::kTanhGrad:
    return v * (T(1) - h * h);
  case Activation::kReluGrad:
    return h <= T(0) ? Vec<T>{} : v;
  case Activation::kIdentity:
    break;
  }
  return v;
}

// Load the vector that begins at element c of a row of n elements. Lanes after the end become minus
// infinity.
template <class T> RNNFAST_INLINE Vec<T> load_or_lowest(const T* row, int64_t c, int64_t n) {
  Vec<T> v = load<T>(row + c);
  if (n - c < kVector<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < kVector<T>; ++i) {
      v[i] = i < n - c ? v[i] : -T(__builtin_inf());
    }
  }
  return v;
}

// See VectorKernels::exponentials.
template <class T> static void exponentials(T* row, int64_t n, T* max, T* sum) {
  constexpr int VL = kVector<T>;
  const T lowest = -T(__builtin_inf());
  Vec<T> largest = Vec<T>{} + lowest;
  for (int64_t c = 0; c < n; c += VL) {
    const Vec<T> x = load_or_lowest<T>(row, c, n);
    largest = x > largest ? x : largest;
  }
  T most = lowest;
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) {
    most = largest[i] > most ? largest[i] : most;
  }
  *max = most;
  const T shift = most == lowest ? T(0) : most;
  Vec<T> sums = {};
  for (int64_t c = 0; c < n; c += VL) {
    const Vec<T> x = load_or_lowest<T>(row, c, n) - shift;
    const Exponential<T> e = exponential<T>(x);
    const Vec<T> result = x < Lanes<T>::kLeastExponent ? Vec<T>{} : e.power * e.small + e.power;
    sums += result;
    store<T>(row + c, result);
  }
  *sum = 0;
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) {
    *sum += sums[i];
  }
}
