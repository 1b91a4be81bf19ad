// AVX2: 16 registers of 32 bytes, so a tile has 6 rows by 2 vectors.
#if defined(__x86_64__)
#include "../isa.h"

#include <cpuid.h>
#include <cstring>
#include <immintrin.h>

#include "target.h"

// Clang 16 does not let __builtin_cpu_supports ask for F16C.
static bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

static bool available() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

RNNFAST_TARGET("avx2,fma,f16c")
#define RNNFAST_VECTOR_BYTES 32
#define RNNFAST_MAX_ROWS 6
#define RNNFAST_WIDEN_F16(half) _mm256_cvtph_ps((__m128i)(half))
#define RNNFAST_NARROW_F16(v) ((Half)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT))
namespace rnnfast::avx2 {
#include "../vector/isa-inl.h"
} // namespace rnnfast::avx2

namespace rnnfast {
extern const Isa kAvx2{"avx2", available, &avx2::kKernels, nullptr};
} // namespace rnnfast
RNNFAST_END_TARGET
#endif
