#include "kernels-inl.h"

namespace rnnfast::cuda {
extern const Kernels kFloat64;
const Kernels kFloat64 = KernelsOf<Float64>::kTable;
} // namespace rnnfast::cuda
