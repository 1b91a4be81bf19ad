// AVX2: 16 registers of 32 bytes, so a tile has 6 rows by 2 vectors.
#if defined(__x86_64__)
#include "../isa.h"

#include <cstring>
#include <immintrin.h>

static bool available() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

// No header may be included after this line. The linker keeps one copy of an inline function, and
// if that copy used these instructions, CPUs without them would crash.
#pragma GCC target("avx2,fma,f16c")
#define RNNFAST_VECTOR_BYTES 32
#define RNNFAST_MAX_ROWS 6
#define RNNFAST_WIDEN_F16(half) _mm256_cvtph_ps((__m128i)(half))
#define RNNFAST_NARROW_F16(v) ((Half)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT))
namespace rnnfast::avx2 {
#include "../vector/isa-inl.h"
} // namespace rnnfast::avx2

namespace rnnfast {
static constexpr KernelSet kKernels = avx2::kernel_set();
extern const Isa kAvx2{"avx2", available, &kKernels, nullptr};
} // namespace rnnfast
#endif
