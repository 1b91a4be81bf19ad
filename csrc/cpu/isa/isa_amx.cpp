// AVX-512 with AMX for the products of bfloat16: one instruction multiplies 16 rows by 16 columns
// by 32 elements of K. This code has not run on a CPU that has AMX yet, so it is used on request
// only.
#include "../isa.h"

#if defined(RNNFAST_AMX)
#include <cstring>
#include <immintrin.h>

#include "amx_permission.h"
#include "target.h"

RNNFAST_TARGET("avx512bf16,avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#define RNNFAST_VECTOR_BYTES 64
#define RNNFAST_MAX_ROWS 32
#define RNNFAST_TILE_REGISTERS
// Subnormal numbers become zeros here, as they do in the products.
#define RNNFAST_NARROW_BF16(v) ((Half)_mm512_cvtneps_pbh(v))
namespace rnnfast::amx {
#include "amx_registers-inl.h"

#include "../vector/isa-inl.h"
} // namespace rnnfast::amx

namespace rnnfast {
extern const Isa kAmx{"amx", available, &kAvx512Kernels, &amx::kPairKernels, enable};
}
RNNFAST_END_TARGET
#endif
