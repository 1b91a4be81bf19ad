#include "kernels-inl.h"

namespace rnnfast::cuda {
extern const Kernels kBfloat16;
const Kernels kBfloat16 = KernelsOf<Bfloat16>::kTable;
} // namespace rnnfast::cuda
