// AVX-512: 32 registers of 64 bytes, so a tile has 12 rows by 2 vectors.
#if defined(__x86_64__)
#include "../isa.h"

#include <cstring>
#include <immintrin.h>

#include "target.h"

static bool available() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

RNNFAST_TARGET("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#define RNNFAST_VECTOR_BYTES 64
#define RNNFAST_MAX_ROWS 12
#define RNNFAST_WIDEN_F16(half) _mm512_maskz_cvtph_ps(0xFFFF, (__m256i)(half))
#define RNNFAST_NARROW_F16(v) ((Half)_mm512_maskz_cvtps_ph(0xFFFF, v, _MM_FROUND_TO_NEAREST_INT))
#define RNNFAST_PICK(a, b, places)                                                                 \
  _mm512_permutex2var_ps(                                                                          \
      a, _mm512_maskz_cvtepu8_epi32(0xFFFF, _mm_loadu_si128((const __m128i*)(places))), b)
namespace rnnfast::avx512 {
#include "../vector/isa-inl.h"
} // namespace rnnfast::avx512

namespace rnnfast {
extern const KernelSet kAvx512Kernels = avx512::kKernels;
extern const Isa kAvx512{"avx512", available, &kAvx512Kernels, nullptr};
} // namespace rnnfast
RNNFAST_END_TARGET
#endif
