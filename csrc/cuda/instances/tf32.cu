#include "../kernels-inl.h"

namespace rnnfast::cuda {
extern const Kernels kTf32;
const Kernels kTf32 = kernels_of<Tf32>();
} // namespace rnnfast::cuda
