#include "../kernels-inl.h"

namespace rnnfast::cuda {
extern const Kernels kFloat32;
const Kernels kFloat32 = kernels_of<Float32>();
} // namespace rnnfast::cuda
