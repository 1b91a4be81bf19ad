#include "kernels-inl.h"

namespace rnnfast::cuda {
extern const Kernels kFloat32;
const Kernels kFloat32 = KernelsOf<Float32>::kTable;
} // namespace rnnfast::cuda
