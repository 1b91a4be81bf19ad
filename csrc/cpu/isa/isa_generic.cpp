// The baseline of the compiler: 16-byte vectors. That is SSE2 on x86-64 and NEON on AArch64.
#include "../isa.h"

#include <cstring>

#define RNNFAST_VECTOR_BYTES 16
#define RNNFAST_MAX_ROWS 4
namespace rnnfast::generic {
#include "../vector/isa-inl.h"
} // namespace rnnfast::generic

namespace rnnfast {
static constexpr KernelSet kKernels = generic::kernel_set();
const Isa kGeneric{"generic", [] { return true; }, &kKernels, nullptr};
} // namespace rnnfast
