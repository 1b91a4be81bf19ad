// NEON, which every AArch64 CPU has: 32 registers of 16 bytes. A tile has 10 rows by 2 vectors,
// because GCC also keeps the 10 elements of the left factor in registers.
#if defined(__aarch64__)
#include "../isa.h"

#include <arm_neon.h>
#include <cstring>

#define RNNFAST_VECTOR_BYTES 16
#define RNNFAST_MAX_ROWS 10
#define RNNFAST_WIDEN_F16(half) ((Vec<float>)vcvt_f32_f16((float16x4_t)(half)))
#define RNNFAST_NARROW_F16(v) ((Half)vcvt_f16_f32((float32x4_t)(v)))
namespace rnnfast::neon {
#include "../vector/isa-inl.h"
} // namespace rnnfast::neon

namespace rnnfast {
extern const Isa kNeon{"neon", [] { return true; }, &neon::kKernels, nullptr};
} // namespace rnnfast
#endif
