// The kernels of one precision. Each file in instances/ instantiates them for its own precision, so
// that the precisions compile at the same time.
#pragma once

#include "plan.h"
#include "recur.h"
#include "step.h"

namespace rnnfast::cuda {

template <class P, template <class> class Exchange> constexpr Shape shape() {
  constexpr bool kGrid = Exchange<P>::kKernel == Kernel::kGrid;
  return {Exchange<P>::kKernel,
          P::E::kMatrix,
          Exchange<P>::kTogether,
          std::is_same_v<Exchange<P>, Numbered<P>>,
          P::kUnitStep,
          P::kMostUnits,
          P::kBlocks,
          &P::threads,
          &P::rows,
          size_t(P::kSharedWords + Exchange<P>::kSharedWords) * 16,
          size_t(kGrid ? Exchange<P>::kGlobalBytes : 0),
          {{&recur<P, Exchange, false, false>, &recur<P, Exchange, false, true>},
           {&recur<P, Exchange, true, false>, &recur<P, Exchange, true, true>}}};
}

// W_hh in the registers of one block, or of the members of a group: 128 a thread at most, and the
// same again in shared memory. What each precision has is what its bytes and its product need.

// (Templates all three, so that a file compiles no kernels but its own.)

// MatrixProduct: tiles, blocks of k and warps that share k; 8 rows; cells; blocks in shared memory.
template <class E, class = void> struct Shapes {
  static constexpr Shape kAll[] = {
      shape<MatrixProduct<E, 1, 2, 1, 1, 1>, Block>(),
      shape<MatrixProduct<E, 1, 2, 1, 1, 2>, Block>(),
      shape<MatrixProduct<E, 2, 4, 1, 1, 1>, Block>(),
      shape<MatrixProduct<E, 2, 4, 1, 1, 4>, Block>(),
      shape<MatrixProduct<E, 2, 8, 1, 1, 1>, Block>(),
      shape<MatrixProduct<E, 2, 8, 1, 1, 4>, Block>(),
      shape<MatrixProduct<E, 1, 4, 2, 1, 1>, Cluster>(),
      shape<MatrixProduct<E, 1, 8, 2, 1, 1>, Cluster>(),
      shape<MatrixProduct<E, 1, 8, 2, 2, 2>, Cluster>(),
      shape<MatrixProduct<E, 1, 16, 2, 1, 1>, Cluster>(),
      shape<MatrixProduct<E, 1, 16, 2, 2, 2>, Cluster>(),
      shape<MatrixProduct<E, 1, 16, 2, 4, 4>, Cluster>(),
      shape<MatrixProduct<E, 1, 8, 8, 1, 1>, Numbered>(),
      shape<MatrixProduct<E, 1, 16, 4, 1, 1>, Numbered>(),
      shape<MatrixProduct<E, 1, 16, 4, 1, 1>, Counted>(),
      shape<MatrixProduct<E, 1, 16, 4, 4, 2>, Counted>(),
  };
};
template <class E> struct Shapes<E, std::enable_if_t<std::is_same_v<E, Tf32>>> {
  static constexpr Shape kAll[] = {
      shape<MatrixProduct<E, 1, 4, 1, 1, 1>, Block>(),
      shape<MatrixProduct<E, 1, 4, 1, 1, 2>, Block>(),
      shape<MatrixProduct<E, 2, 8, 1, 1, 1>, Block>(),
      shape<MatrixProduct<E, 2, 8, 1, 1, 4>, Block>(),
      shape<MatrixProduct<E, 1, 8, 2, 1, 1>, Cluster>(),
      shape<MatrixProduct<E, 1, 8, 2, 2, 2>, Cluster>(),
      shape<MatrixProduct<E, 1, 16, 2, 1, 1>, Cluster>(),
      shape<MatrixProduct<E, 1, 16, 2, 2, 2>, Cluster>(),
      shape<MatrixProduct<E, 1, 32, 2, 1, 1, 18>, Cluster>(),
      shape<MatrixProduct<E, 1, 16, 4, 1, 1>, Numbered>(),
      shape<MatrixProduct<E, 1, 16, 4, 1, 1>, Counted>(),
      shape<MatrixProduct<E, 1, 16, 4, 4, 2>, Counted>(),
  };
};
// ScalarProduct: lanes that share units; units, 16-byte words and rows of a thread; words in shared
// memory.
template <class E> struct Shapes<E, std::enable_if_t<std::is_same_v<E, Float32>>> {
  static constexpr Shape kAll[] = {
      shape<ScalarProduct<E, 16, 4, 1, 1>, Block>(),
      shape<ScalarProduct<E, 16, 4, 1, 2>, Block>(),
      shape<ScalarProduct<E, 16, 4, 1, 4>, Block>(),
      shape<ScalarProduct<E, 8, 4, 4, 1>, Block>(),
      shape<ScalarProduct<E, 8, 4, 4, 2>, Block>(),
      shape<ScalarProduct<E, 8, 4, 4, 4>, Block>(),
      shape<ScalarProduct<E, 16, 4, 4, 1>, Cluster>(),
      shape<ScalarProduct<E, 16, 4, 4, 2>, Cluster>(),
      shape<ScalarProduct<E, 16, 4, 4, 4>, Cluster>(),
      shape<ScalarProduct<E, 16, 4, 4, 8>, Cluster>(),
      shape<ScalarProduct<E, 16, 4, 8, 1>, Cluster>(),
      shape<ScalarProduct<E, 16, 4, 8, 4>, Cluster>(),
      shape<ScalarProduct<E, 16, 4, 16, 1, 10>, Cluster>(),
      shape<ScalarProduct<E, 32, 4, 4, 1>, Cluster>(),
      shape<ScalarProduct<E, 32, 4, 4, 4>, Cluster>(),
      shape<ScalarProduct<E, 32, 4, 4, 8>, Cluster>(),
      shape<ScalarProduct<E, 32, 4, 8, 1>, Numbered>(),
      shape<ScalarProduct<E, 32, 2, 16, 1>, Numbered>(),
      shape<ScalarProduct<E, 32, 4, 8, 4>, Counted>(),
      shape<ScalarProduct<E, 32, 2, 16, 1>, Counted>(),
      shape<ScalarProduct<E, 32, 2, 16, 4>, Counted>(),
  };
};

template <class E> void prepare_for(const Call& call, uint4* weights, int blocks, void* stream) {
  device::launch("prepare", &prepare<E>, kThreads, {blocks, 1, false, 0, stream}, call, weights,
                 blocks);
}

template <class E> constexpr Kernels kernels_of() {
  if constexpr (sizeof(typename E::Sum) == 4) {
    return {Shapes<E>::kAll, int(sizeof Shapes<E>::kAll / sizeof(Shape)), &prepare_for<E>,
            &step<E>};
  } else {
    return {nullptr, 0, &prepare_for<E>, &step<E>};
  }
}

} // namespace rnnfast::cuda
