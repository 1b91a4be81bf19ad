#include "kernels-inl.h"

namespace rnnfast::cuda {
extern const Kernels kTf32;
const Kernels kTf32 = KernelsOf<Tf32>::kTable;
} // namespace rnnfast::cuda
