// The update by one entry of GloVe, which api/glove.h defines.

// Return x^(-1/2) of positive numbers, exact up to a few roundings: a first guess from the bits,
// then three steps of Newton's method. A square root and a division would be slower, because both
// occupy the same unit of the CPU for the whole update.
RNNFAST_INLINE Vec<float> inverse_root(Vec<float> x) {
  using Bits = typename Lanes<float>::Bits;
  Vec<float> y = (Vec<float>)(0x5F375A86 - ((Bits)x >> 1));
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    y = y * (1.5f - (0.5f * x * y) * y);
  }
  return y;
}

// Update n elements of the vectors of a word and a context, where n is at most the elements of a
// Vec<float>.
RNNFAST_INLINE void glove_step(float* w, float* c, float* w_squares, float* c_squares, int64_t n,
                               float g, float lr) {
  const Vec<float> old_w = load_edge<float>(w, n), old_c = load_edge<float>(c, n);
  const Vec<float> s_w = load_edge<float>(w_squares, n), s_c = load_edge<float>(c_squares, n);
  const Vec<float> g_w = g * old_c, g_c = g * old_w;
  store_edge<float>(w, n, old_w - lr * g_w * inverse_root(s_w));
  store_edge<float>(c, n, old_c - lr * g_c * inverse_root(s_c));
  store_edge<float>(w_squares, n, s_w + g_w * g_w);
  store_edge<float>(c_squares, n, s_c + g_c * g_c);
}

// Update `word` and `context`, each [2, D + 1], and return the term of the entry in J.
template <class T>
static T glove_update(T* __restrict word, T* __restrict context, int64_t D, T log_x, T weight,
                      T lr) {
  constexpr int VL = kVector<T>;
  Vec<T> sums{};
  int64_t d = 0;
  for (; d + VL <= D; d += VL) {
    sums += load<T>(word + d) * load<T>(context + d);
  }
  if (d < D) {
    sums += load_edge<T>(word + d, D - d) * load_edge<T>(context + d, D - d);
  }
  T dot = 0;
  for (int i = 0; i < VL; ++i) {
    dot += sums[i];
  }
  const T error = dot + word[D] + context[D] - log_x, g = weight * error;
  T *const w_squares = word + D + 1, *const c_squares = context + D + 1;
  for (d = 0; d + VL <= D; d += VL) {
    glove_step(word + d, context + d, w_squares + d, c_squares + d, VL, g, lr);
  }
  if (d < D) {
    glove_step(word + d, context + d, w_squares + d, c_squares + d, D - d, g, lr);
  }
  word[D] -= lr * g / __builtin_sqrtf(w_squares[D]);
  context[D] -= lr * g / __builtin_sqrtf(c_squares[D]);
  w_squares[D] += g * g;
  c_squares[D] += g * g;
  return g * error;
}
