// The dtypes: how each is stored, multiplied and rounded. A row of the state or of W is cut into
// blocks of 64 bytes. Lane 4 g + t of a warp holds the t-th 16 bytes of a block. A matrix
// instruction may take the k in any order, as long as both factors have the same order. So the 16
// bytes of a lane are the words of two instructions, and one 16-byte load feeds both.
#pragma once

#include <cmath>

#include "device.h"

namespace rnnfast::cuda {

// The share of a lane of 16 rows of W and one block of k: its words of rows g and g + 8.
struct Weights {
  uint4 low, high;
};
constexpr int kPartBytes = 1024; // the share of a warp

// kMatrix: whether matrix instructions multiply 8 columns (batch rows) at a time. Otherwise FMA
// multiplies one. `operand` returns a sum as a factor of the next product. `store` returns it as
// the caller's tensor holds it. `operands` makes the factors of all sums that a thread finishes at
// a time, in words of 4 bytes. `stored` takes the e-th element of the tensor from these words if
// they have it.
struct Float32 {
  using Stored = float;
  using Sum = float;
  static constexpr bool kMatrix = false;
  static RNNFAST_DEVICE float operand(float x) { return x; }
  static RNNFAST_DEVICE void operands(const float (&x)[1], uint32_t* words) {
    words[0] = device::bits_of(x[0]);
  }
  static RNNFAST_DEVICE float stored(float x, const uint32_t*, int) { return x; }
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
  static RNNFAST_DEVICE void operands(const float (&x)[2], uint32_t* words) {
    words[0] = device::bits_of(operand(x[0]));
    words[1] = device::bits_of(operand(x[1]));
  }
  template <class... Words> static RNNFAST_DEVICE void mma(float (&c)[4], Words... words) {
    device::mma_tf32(c, words...);
  }
};

struct Bfloat16 {
  using Stored = uint16_t;
  using Sum = float;
  static constexpr bool kMatrix = true;
  static RNNFAST_DEVICE uint16_t operand(float x) { return device::to_bfloat16(x); }
  static RNNFAST_DEVICE void operands(const float (&x)[2], uint32_t* words) {
    words[0] = device::to_bfloat16s(x[0], x[1]);
  }
  static RNNFAST_DEVICE uint16_t stored(float, const uint32_t* words, int e) {
    return uint16_t(words[0] >> 16 * e);
  }
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
  static RNNFAST_DEVICE void operands(const float (&x)[2], uint32_t* words) {
    words[0] = device::to_float16s(x[0], x[1]);
  }
  static RNNFAST_DEVICE uint16_t stored(float, const uint32_t* words, int e) {
    return uint16_t(words[0] >> 16 * e);
  }
  static RNNFAST_DEVICE uint16_t store(float x) { return device::to_float16(x); }
  static RNNFAST_DEVICE float load(uint16_t x) { return device::from_float16(x); }
  static RNNFAST_DEVICE float tanh(float x) { return ::tanhf(x); }
  template <class... Words> static RNNFAST_DEVICE void mma(float (&c)[4], Words... words) {
    device::mma_float16(c, words...);
  }
};

// Two adjacent units as operands.
template <class E> struct alignas(2 * sizeof(typename E::Stored)) Pair {
  typename E::Stored first, second;
};

// The number of elements in a block of 64 bytes.
template <class E> constexpr int kBlock = 64 / sizeof(typename E::Stored);
// The number of batch rows that are multiplied at a time.
template <class E> constexpr int kColumns = E::kMatrix ? 8 : 1;

} // namespace rnnfast::cuda
