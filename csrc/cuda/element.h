// The dtypes: how one is stored, multiplied and rounded. A row of the state or of W is cut into
// blocks of 64 bytes; lane 4 g + t of a warp holds the t-th 16 bytes of a block. Which k a matrix
// instruction calls its first does not matter as long as both factors agree, so that each lane's
// 16 bytes are simply the words of two instructions, and one 16-byte load feeds both.
#pragma once

#include <cmath>

#include "device.h"

namespace rnnfast::cuda {

// A lane's share of 16 rows of W and one block of k: rows g and g + 8.
struct Weights {
  uint4 low, high;
};

// kMatrix: 8 columns (batch rows) at a time by matrix instructions; otherwise one, by FMA.
// `operand`: a sum as a factor of the next product. `store`: as the caller's tensor keeps it.
struct Float32 {
  using Stored = float;
  using Sum = float;
  static constexpr bool kMatrix = false;
  static RNNFAST_DEVICE float operand(float x) { return x; }
  static RNNFAST_DEVICE float store(float x) { return x; }
  static RNNFAST_DEVICE float load(float x) { return x; }
  static RNNFAST_DEVICE float tanh(float x) { return ::tanhf(x); }
  static RNNFAST_DEVICE float dot(float sum, const uint4& a, const uint4& b) {
    sum = fmaf(device::float_of(a.x), device::float_of(b.x), sum);
    sum = fmaf(device::float_of(a.y), device::float_of(b.y), sum);
    sum = fmaf(device::float_of(a.z), device::float_of(b.z), sum);
    return fmaf(device::float_of(a.w), device::float_of(b.w), sum);
  }
};

struct Float64 {
  using Stored = double;
  using Sum = double;
  static constexpr bool kMatrix = false;
  static RNNFAST_DEVICE double operand(double x) { return x; }
  static RNNFAST_DEVICE double store(double x) { return x; }
  static RNNFAST_DEVICE double load(double x) { return x; }
  static RNNFAST_DEVICE double tanh(double x) { return ::tanh(x); }
  static RNNFAST_DEVICE double dot(double sum, const uint4& a, const uint4& b) {
    sum = fma(device::double_of(a.x, a.y), device::double_of(b.x, b.y), sum);
    return fma(device::double_of(a.z, a.w), device::double_of(b.z, b.w), sum);
  }
};

struct Tf32 : Float32 {
  static constexpr bool kMatrix = true;
  static RNNFAST_DEVICE float operand(float x) { return device::to_tf32(x); }
  template <class... Words> static RNNFAST_DEVICE void mma(float (&c)[4], Words... words) {
    device::mma_tf32(c, words...);
  }
};

struct Bfloat16 {
  using Stored = uint16_t;
  using Sum = float;
  static constexpr bool kMatrix = true;
  static RNNFAST_DEVICE uint16_t operand(float x) { return device::to_bfloat16(x); }
  static RNNFAST_DEVICE uint16_t store(float x) { return device::to_bfloat16(x); }
  static RNNFAST_DEVICE float load(uint16_t x) { return device::from_bfloat16(x); }
  static RNNFAST_DEVICE float tanh(float x) { return device::tanh_roughly(x); }
  template <class... Words> static RNNFAST_DEVICE void mma(float (&c)[4], Words... words) {
    device::mma_bfloat16(c, words...);
  }
};

struct Float16 {
  using Stored = uint16_t;
  using Sum = float;
  static constexpr bool kMatrix = true;
  static RNNFAST_DEVICE uint16_t operand(float x) { return device::to_float16(x); }
  static RNNFAST_DEVICE uint16_t store(float x) { return device::to_float16(x); }
  static RNNFAST_DEVICE float load(uint16_t x) { return device::from_float16(x); }
  static RNNFAST_DEVICE float tanh(float x) { return ::tanhf(x); }
  template <class... Words> static RNNFAST_DEVICE void mma(float (&c)[4], Words... words) {
    device::mma_float16(c, words...);
  }
};

// Two units next to one another, as operands.
template <class E> struct alignas(2 * sizeof(typename E::Stored)) Pair {
  typename E::Stored first, second;
};

// Elements in a block of 64 bytes.
template <class E> constexpr int kBlock = 64 / sizeof(typename E::Stored);
// Batch rows that a lane multiplies with at a time.
template <class E> constexpr int kColumns = E::kMatrix ? 8 : 1;

// Sums of products of a warp: MT times 16 hidden units by N times kColumns batch rows.
template <class E, int MT, int N> class Sums {
  using Sum = typename E::Sum;

public:
  RNNFAST_DEVICE void add(const Weights (&w)[MT], const uint4 (&h)[N]) {
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        if constexpr (E::kMatrix) {
          const uint4 &low = w[m].low, &high = w[m].high;
          E::mma(c_[0][m][n], low.x, high.x, low.y, high.y, h[n].x, h[n].y);
          E::mma(c_[kChains - 1][m][n], low.z, high.z, low.w, high.w, h[n].z, h[n].w);
        } else {
          c_[0][m][n][0] = E::dot(c_[0][m][n][0], w[m].low, h[n]);
          c_[0][m][n][1] = E::dot(c_[0][m][n][1], w[m].high, h[n]);
        }
      }
    }
  }

  // To a matrix of batch rows by hidden units, whose rows are `stride` apart.
  RNNFAST_DEVICE void store(Sum* to, int stride, int lane) const {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      if constexpr (E::kMatrix) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const Sum sum =
                kChains == 1 ? c_[0][m][n][i] : c_[0][m][n][i] + c_[kChains - 1][m][n][i];
            to[(n * 8 + 2 * t + i % 2) * stride + m * 16 + g + i / 2 * 8] = sum;
          }
        }
      } else {
        // Each lane of a g has the sum over its own k.
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int unit = m * 16 + g + i * 8;
          if constexpr (N == 1) {
            Sum sum = c_[0][m][0][i];
            sum += device::shuffle_xor(sum, 1);
            sum += device::shuffle_xor(sum, 2);
            if (t == 0) {
              to[unit] = sum;
            }
          } else { // lane t takes batch row t
            static_assert(N == 4);
            const bool upper = (t & 2) != 0, odd = (t & 1) != 0;
            Sum half[2];
#pragma unroll
            for (int n = 0; n < 2; ++n) {
              const Sum kept = upper ? c_[0][m][n + 2][i] : c_[0][m][n][i];
              const Sum given = upper ? c_[0][m][n][i] : c_[0][m][n + 2][i];
              half[n] = kept + device::shuffle_xor(given, 2);
            }
            const Sum kept = odd ? half[1] : half[0], given = odd ? half[0] : half[1];
            to[t * stride + unit] = kept + device::shuffle_xor(given, 1);
          }
        }
      }
    }
  }

private:
  // Matrix instructions that add to the same sum wait for one another, so that few of them are
  // better spread over two.
  static constexpr int kChains = E::kMatrix && N == 1 ? 2 : 1;
  Sum c_[kChains][MT][N][E::kMatrix ? 4 : 2] = {};
};

} // namespace rnnfast::cuda
