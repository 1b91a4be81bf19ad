// The 16-bit element types of tensors, which C++17 does not have.
#pragma once

#include <cstdint>

namespace rnnfast {

// Both types are storage formats. The kernels compute in float and round every result to the
// nearest value of the format, ties to even.
//
// Where the CPU multiplies pairs of bfloat16 (AVX512-BF16, AMX), the kernels for bfloat16 use that
// instruction. The factors of the matrix products are then bfloat16, including the hidden state
// that one time step hands to the next, and subnormal bfloat16 numbers become zeros. The sums are
// float.
struct bfloat16 {
  uint16_t bits; // the upper half of a float
};
struct float16 {
  uint16_t bits; // IEEE 754 binary16
};

} // namespace rnnfast
