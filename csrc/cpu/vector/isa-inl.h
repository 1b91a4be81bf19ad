// All vector code, compiled for one instruction set, and the table of its functions. Each isa_*.cpp
// includes this file inside a namespace of its own, after a target pragma, with
// RNNFAST_VECTOR_BYTES and RNNFAST_MAX_ROWS defined.

// tile-inl.h comes first, because the others use the vectors that it includes.
#include "tile-inl.h"

#include "dropout-inl.h"
#include "glove-inl.h"
#include "outer-inl.h"

template <class S, class O> constexpr VectorKernels<S, O> vector_kernels() {
  return {kVector<Sum<S>>,      kPanel<Sum<S>>, pack<S, O>,           pack_rows<S, O>,
          widen_row<S, O>,      narrow_row<S>,  exponentials<Sum<S>>, fused_product<S, O>,
          outer_products<S, O>, dropout<S>};
}

template <class = void> constexpr KernelSet kernel_set() {
  return {vector_kernels<float, float>(), vector_kernels<double, double>(),
          vector_kernels<bfloat16, float>(), vector_kernels<float16, float>(), glove_update<float>};
}

#undef RNNFAST_INLINE
