#include "../kernels-inl.h"

namespace rnnfast::cuda {
extern const Kernels kFloat64;
const Kernels kFloat64 = kernels_of<Float64>();
} // namespace rnnfast::cuda
