// The kernels of one precision. Each file in instances/ instantiates them for its own precision, so
// that the precisions compile at the same time.
#pragma once

#include <array>

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
          {{&recur<P, Exchange, false, Mode::kDense>, &recur<P, Exchange, true, Mode::kDense>},
           {&recur<P, Exchange, false, Mode::kPacked>, &recur<P, Exchange, true, Mode::kPacked>},
           {&recur<P, Exchange, false, Mode::kResets>, &recur<P, Exchange, true, Mode::kResets>},
           {&recur<P, Exchange, false, Mode::kLeaky>, &recur<P, Exchange, true, Mode::kLeaky>}}};
}

// The kernels that keep W_hh on the chip. A thread holds at most 128 registers of W_hh and as much
// again in shared memory. The sizes follow from the bytes of a precision and from its product.

template <size_t M, size_t N>
constexpr std::array<Shape, M + N> join(const std::array<Shape, M>& first,
                                        const std::array<Shape, N>& second) {
  std::array<Shape, M + N> all{};
  for (size_t i = 0; i < M + N; ++i) {
    all[i] = i < M ? first[i] : second[i - M];
  }
  return all;
}

// The arguments of ScalarProduct after E: lanes that share units; units, 16-byte words and rows of
// a thread; words in shared memory.
template <class E> constexpr auto scalar_shapes() {
  return std::array{
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
}

// The arguments of MatrixProduct after E: tiles, blocks of k and warps that share k; groups of 8
// rows; cells; blocks in shared memory.
template <class E> constexpr auto matrix_shapes() {
  constexpr std::array kBoth = {
      shape<MatrixProduct<E, 2, 8, 1, 1, 1>, Block>(),
      shape<MatrixProduct<E, 2, 8, 1, 1, 4>, Block>(),
      shape<MatrixProduct<E, 1, 8, 2, 1, 1>, Cluster>(),
      shape<MatrixProduct<E, 1, 8, 2, 2, 2>, Cluster>(),
      shape<MatrixProduct<E, 1, 16, 2, 1, 1>, Cluster>(),
      shape<MatrixProduct<E, 1, 16, 2, 2, 2>, Cluster>(),
      shape<MatrixProduct<E, 1, 16, 4, 1, 1>, Numbered>(),
      shape<MatrixProduct<E, 1, 16, 4, 1, 1>, Counted>(),
      shape<MatrixProduct<E, 1, 16, 4, 4, 2>, Counted>(),
  };
  if constexpr (std::is_same_v<E, Tf32>) {
    constexpr std::array kOwn = {
        shape<MatrixProduct<E, 1, 4, 1, 1, 1>, Block>(),
        shape<MatrixProduct<E, 1, 4, 1, 1, 2>, Block>(),
        shape<MatrixProduct<E, 1, 32, 2, 1, 1, 18>, Cluster>(),
    };
    return join(kBoth, kOwn);
  } else {
    constexpr std::array kOwn = {
        shape<MatrixProduct<E, 1, 2, 1, 1, 1>, Block>(),
        shape<MatrixProduct<E, 1, 2, 1, 1, 2>, Block>(),
        shape<MatrixProduct<E, 2, 4, 1, 1, 1>, Block>(),
        shape<MatrixProduct<E, 2, 4, 1, 1, 4>, Block>(),
        shape<MatrixProduct<E, 1, 4, 2, 1, 1>, Cluster>(),
        shape<MatrixProduct<E, 1, 16, 2, 4, 4>, Cluster>(),
        shape<MatrixProduct<E, 1, 8, 8, 1, 1>, Numbered>(),
    };
    return join(kBoth, kOwn);
  }
}

template <class E> constexpr auto shapes() {
  if constexpr (std::is_same_v<E, Float32>) {
    return scalar_shapes<E>();
  } else {
    return matrix_shapes<E>();
  }
}
template <class E> constexpr auto kShapes = shapes<E>();

template <class E> void prepare_for(const Call& call, uint4* weights, int blocks, void* stream) {
  device::launch("prepare", &prepare<E>, kThreads, {blocks, 1, false, 0, stream}, call, weights,
                 blocks);
}

template <class E> constexpr Kernels kernels_of() {
  if constexpr (sizeof(typename E::Sum) == 4) {
    return {kShapes<E>.data(),
            int(kShapes<E>.size()),
            &prepare_for<E>,
            {&step<E, false>, &step<E, true>}};
  } else {
    return {nullptr, 0, &prepare_for<E>, {&step<E, false>, &step<E, true>}};
  }
}

} // namespace rnnfast::cuda
