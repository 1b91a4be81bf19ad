// All vector code, compiled for one instruction set, and the table of its functions. Each isa_*.cpp
// includes this file inside a namespace of its own, after a target pragma, with
// RNNFAST_VECTOR_BYTES and RNNFAST_MAX_ROWS defined.

// tile-inl.h comes first, because the others use the vectors that it includes.
#include "tile-inl.h"

#include "dropout-inl.h"
#include "glove-inl.h"
#include "outer-inl.h"

template <class S, class O> constexpr Kernels<S, O> table() {
  return {kVector<Sum<S>>, kPanel<Sum<S>>,       pack<S, O>, pack_rows<S, O>, widen_row<S, O>,
          narrow_row<S>,   exponentials<Sum<S>>, step<S, O>, outer<S, O>,     dropout<S>};
}

template <class = void> constexpr Tables tables() {
  return {table<float, float>(), table<double, double>(), table<bfloat16, float>(),
          table<float16, float>(), glove_update<float>};
}

#undef RNNFAST_INLINE
