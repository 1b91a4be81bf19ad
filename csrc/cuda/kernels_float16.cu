#include "kernels-inl.h"

namespace rnnfast::cuda {
extern const Kernels kFloat16;
const Kernels kFloat16 = KernelsOf<Float16>::kTable;
} // namespace rnnfast::cuda
