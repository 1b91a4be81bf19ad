// All vector code, and the tables of its functions. Each isa_*.cpp includes this file after a
// target pragma and inside a namespace of its own, with these macros defined:
//
//   RNNFAST_VECTOR_BYTES  the bytes of a vector
//   RNNFAST_MAX_ROWS      the most rows of a tile, whose accumulators must fit into the registers
//
// Some instruction sets define more: RNNFAST_EMULATED if a vector is wider than a register,
// RNNFAST_WIDEN_F16, RNNFAST_NARROW_F16 and RNNFAST_NARROW_BF16 for conversions in one instruction,
// RNNFAST_MULTIPLY_ADD_PAIRS for products of pairs of bfloat16, RNNFAST_TILE_REGISTERS for the tile
// registers of AMX, and RNNFAST_PICK(a, b, places) to pick an element of two vectors of float for
// each lane.
//
// The code uses the vector extensions of GCC and Clang, so the width is all that differs between
// most instruction sets. Files ending in -inl.h have no include guard, because each is included
// once for every instruction set.

// tile-inl.h comes first, because the others use the vectors that it includes.
#include "tile-inl.h"

#include "dropout-inl.h"
#include "glove-inl.h"
#include "normal-inl.h"
#include "outer-inl.h"
#include "sparse-inl.h"

// The functions for the element types S and O, in the order of the members of VectorKernels.
template <class S, class O> constexpr VectorKernels<S, O> vector_kernels() {
  void (*unpacked)(const FusedProduct<S, O>&) = nullptr;
  if constexpr (kPair<O> == 1) {
    unpacked = unpacked_product<S, O>;
  }
  return {kVector<Sum<S>>, kPanel<Sum<S>>,       pack<S, O>,           pack_rows<S, O>,
          widen_row<S, O>, narrow_row<S>,        exponentials<Sum<S>>, fused_product<S, O>,
          unpacked,        outer_products<S, O>, dropout<S>,           add_normal<Sum<S>>};
}

// Instruction sets that add products of pairs of bfloat16 do not compile the functions for all
// types once more.
#if defined(RNNFAST_MULTIPLY_ADD_PAIRS) || defined(RNNFAST_TILE_REGISTERS)
static constexpr VectorKernels<bfloat16> kPairKernels = vector_kernels<bfloat16, bfloat16>();
#else
static constexpr KernelSet kKernels = {vector_kernels<float, float>(),
                                       vector_kernels<double, double>(),
                                       vector_kernels<bfloat16, float>(),
                                       vector_kernels<float16, float>(),
                                       glove_update<float>,
                                       kReservoirKernels<float>,
                                       kReservoirKernels<double>};
#endif

#undef RNNFAST_INLINE
