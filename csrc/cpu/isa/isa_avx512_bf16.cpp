// AVX-512 with an instruction that multiplies pairs of bfloat16 and adds the products up in float.
// It takes as long as one multiply-add of floats.
#if defined(__x86_64__)
#include "../isa.h"

#include <cstring>
#include <immintrin.h>

#include "target.h"

static bool available() {
  return rnnfast::kAvx512.available() && __builtin_cpu_supports("avx512bf16");
}

RNNFAST_TARGET("avx512bf16,avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#define RNNFAST_VECTOR_BYTES 64
#define RNNFAST_MAX_ROWS 12
#define RNNFAST_MULTIPLY_ADD_PAIRS(sum, a, b) multiply_add_pairs(sum, a, (__m512bh)(b))
// Subnormal numbers become zeros here, as they do in the products.
#define RNNFAST_NARROW_BF16(v) ((Half)_mm512_cvtneps_pbh(v))
namespace rnnfast::avx512_bf16 {
static inline __attribute__((always_inline)) __m512 multiply_add_pairs(__m512 sum,
                                                                       const bfloat16* a,
                                                                       __m512bh b) {
#if defined(__clang__) // Clang 16 crashes at the intrinsic function with such a factor
  typedef int Pair __attribute__((may_alias, aligned(2)));
  __asm__("vdpbf16ps %2%{1to16%}, %1, %0"
          : "+v"(sum)
          : "v"((__m512)b), "m"(*reinterpret_cast<const Pair*>(a)));
  return sum;
#else
  int pair;
  std::memcpy(&pair, a, sizeof pair);
  return _mm512_dpbf16_ps(sum, b, (__m512bh)_mm512_set1_epi32(pair));
#endif
}
#include "../vector/isa-inl.h"
} // namespace rnnfast::avx512_bf16

namespace rnnfast {
extern const Isa kAvx512Bf16{"avx512_bf16", available, &kAvx512Kernels, &avx512_bf16::kPairKernels};
}
RNNFAST_END_TARGET
#endif
