// AVX-512 whose products of bfloat16 run in tiles (AMX): 16 rows by 16 columns by 32 of K in one
// instruction. Has not run on a CPU that has it, so it is used on request alone.
#include "../isa.h"

#if defined(RNNFAST_AMX)
#include <cstring>
#include <immintrin.h>

#include "amx_permission.h"

#pragma GCC target("avx512bf16,avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#define RNNFAST_VECTOR_BYTES 64
#define RNNFAST_MAX_ROWS 32
#define RNNFAST_TILE_REGISTERS
#define RNNFAST_NARROW_BF16(v) ((Half)_mm512_cvtneps_pbh(v)) // subnormals to zeros, as the product
namespace rnnfast::amx {
#include "amx_registers-inl.h"

#include "../vector/isa-inl.h"
static constexpr VectorKernels<bfloat16> kPairKernels = vector_kernels<bfloat16, bfloat16>();
} // namespace rnnfast::amx

namespace rnnfast {
extern const Isa kAmx{"amx", available, &kAvx512Kernels, &amx::kPairKernels, enable};
}
#endif
