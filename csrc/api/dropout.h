// The contract of dropout (Srivastava et al. 2014): each element is set to zero with probability p
// and otherwise multiplied by 1 / (1 - p), so that its expectation stays the same.
//
// A random number of 32 bits decides about each element. For element i it is one half of output
// floor(i / 2) of the generator SplitMix64 (Steele et al. 2014) that starts from `seed`: the lower
// half for even i, the upper half for odd i. The number depends on i and `seed` only. So a backward
// pass drops the same elements by calling dropout on the gradient with the same seed.
//
// Threads, checks and lifetime are those of rnn.h.
#pragma once

#include <cstdint>

#include "element.h"

namespace rnnfast {

template <class T> struct Dropout {
  int64_t n;     // the number of elements, at least 0
  const T* x;    // [n], read
  uint64_t seed; // every value is valid
  double p;      // in [0, 1]; rounded to the nearest multiple of 2^-32
  T* out;        // [n], written; must not overlap x
  int threads;   // the most threads that may run; less than 1 counts as 1
};

// These functions report no errors.
void dropout(const Dropout<float>&);
void dropout(const Dropout<double>&);
void dropout(const Dropout<bfloat16>&);
void dropout(const Dropout<float16>&);

} // namespace rnnfast
