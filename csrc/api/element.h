// The element types of tensors that C++17 does not have.
#pragma once

#include <cstdint>

namespace rnnfast {

// Elements of 16 bits, for storage: all arithmetic on them is in float. (Where the CPU has a
// product of bfloat16 pairs, the factors of the matrix products are bfloat16, among them the state
// from one step to the next; their sums are float, and subnormal factors count as zeros.)
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

} // namespace rnnfast
