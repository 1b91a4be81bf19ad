// The arithmetic of shim.h: conversions, functions and matrix instructions, from their definitions.
// shim.h includes this file after `exchange`, which the matrix instructions need.
#pragma once

#include "shim_fibers.h"

namespace rnnfast::cuda::device {

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline double double_of(uint32_t low, uint32_t high) {
  const uint64_t bits = uint64_t(high) << 32 | low;
  double x;
  std::memcpy(&x, &bits, 8);
  return x;
}
inline uint16_t to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  return std::isnan(x) ? 0x7fff : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float from_bfloat16(uint16_t x) { return float_of(uint32_t(x) << 16); }
inline uint16_t to_float16(float x) {
  const _Float16 half = static_cast<_Float16>(x);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
// This is a table, because the compiler calls a function where the CPU cannot convert float16.
inline float from_float16(uint16_t x) {
  static const std::vector<float> table = [] {
    std::vector<float> all(1 << 16);
    for (size_t i = 0; i < all.size(); ++i) {
      const uint16_t bits = uint16_t(i);
      _Float16 half;
      std::memcpy(&half, &bits, 2);
      all[i] = half;
    }
    return all;
  }();
  return table[x];
}
// Keeps ten bits of mantissa. Ties are rounded away from zero.
inline float to_tf32(float x) {
  return std::isfinite(x) ? float_of((bits_of(x) + 0x1000) & ~uint32_t(0x1fff)) : x;
}
inline float tanh_roughly(float x) { return std::tanh(x); }
inline float reciprocal(float x) { return 1 / x; }
inline double reciprocal(double x) { return 1 / x; }
inline float relu(float x) { return x < 0 ? 0 : x; }
inline float select(bool which, float yes, float no) { return which ? yes : no; }
template <class T> void keep(T*&) {}
inline uint32_t to_bfloat16s(float first, float second) {
  return to_bfloat16(first) | uint32_t(to_bfloat16(second)) << 16;
}
inline uint32_t to_float16s(float first, float second) {
  return to_float16(first) | uint32_t(to_float16(second)) << 16;
}

// The matrix instruction from its definition. A and B are made from the words of all lanes, in the
// layout of the PTX manual. The result is this lane's four elements of the product.
// decode(word, i) returns element i of a word.
template <int K, class Decode>
void mma(float (&c)[4], const uint32_t (&words)[6], const Decode& decode) {
  const auto& all = exchange(words, 6);
  constexpr int kEach = K == 16 ? 2 : 1; // elements in a word
  const int lane = thread() % 32, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    float sum = c[i];
    for (int k = 0; k < K; ++k) {
      const int upper = k / (4 * kEach), holder = k / kEach % 4, element = k % kEach;
      const uint32_t a = all[row % 8 * 4 + holder][row / 8 + 2 * upper];
      const uint32_t b = all[column * 4 + holder][4 + upper];
      sum += decode(a, element) * decode(b, element);
    }
    c[i] = sum;
  }
}
inline void mma_bfloat16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                         uint32_t b0, uint32_t b1) {
  mma<16>(c, {a0, a1, a2, a3, b0, b1},
          [](uint32_t word, int i) { return from_bfloat16(uint16_t(word >> 16 * i)); });
}
inline void mma_float16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                        uint32_t b0, uint32_t b1) {
  mma<16>(c, {a0, a1, a2, a3, b0, b1},
          [](uint32_t word, int i) { return from_float16(uint16_t(word >> 16 * i)); });
}
inline void mma_tf32(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                     uint32_t b1) {
  mma<8>(c, {a0, a1, a2, a3, b0, b1}, [](uint32_t word, int) { return float_of(word & ~0x1fffu); });
}

} // namespace rnnfast::cuda::device
