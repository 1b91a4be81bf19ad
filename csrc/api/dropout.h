// Dropout (Srivastava et al. 2014): elements are zeroed with probability p, all others multiplied
// by 1 / (1 - p) for the same expectation.
//
// One number of 32 bits decides over an element: of the i-th, counted from 0, it is the lower half,
// for odd i the upper half, of output i / 2 of the generator SplitMix64 (Steele et al. 2014) from
// `seed`. Such numbers need no state, so the same seed drops the same elements of the gradient.
//
// Letters: n elements, one after another. Threads as in rnn.h.
#pragma once

#include <cstdint>

#include "element.h"

namespace rnnfast {

template <class T> struct Dropout {
  int64_t n;  // at least 0
  const T* x; // [n]
  uint64_t seed;
  double p; // in [0, 1], taken to the nearest multiple of 2^-32
  T* out;   // [n], written; does not overlap x
  int threads;
};

void dropout(const Dropout<float>&);
void dropout(const Dropout<double>&);
void dropout(const Dropout<bfloat16>&);
void dropout(const Dropout<float16>&);

} // namespace rnnfast
