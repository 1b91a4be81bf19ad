#include "../kernels-inl.h"

namespace rnnfast::cuda {
extern const Kernels kBfloat16;
const Kernels kBfloat16 = kernels_of<Bfloat16>();
} // namespace rnnfast::cuda
