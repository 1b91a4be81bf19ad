// The baseline of the compiler: 16-byte vectors, which are SSE2 on x86-64.
#include "../isa.h"

#include <cstring>

#define RNNFAST_VECTOR_BYTES 16
#define RNNFAST_MAX_ROWS 4
namespace rnnfast::generic {
#include "../vector/isa-inl.h"
} // namespace rnnfast::generic

namespace rnnfast {
const Isa kGeneric{"generic", [] { return true; }, &generic::kKernels, nullptr};
} // namespace rnnfast
