#include "../kernels-inl.h"

namespace rnnfast::cuda {
extern const Kernels kFloat16;
const Kernels kFloat16 = kernels_of<Float16>();
} // namespace rnnfast::cuda
