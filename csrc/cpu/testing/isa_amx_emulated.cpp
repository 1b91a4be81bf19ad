// isa_amx.cpp with tile registers in plain C++, so that its logic is also tested on CPUs without
// AMX.
#include "../isa.h"

#if defined(RNNFAST_AMX)
#include <cstring>
#include <immintrin.h>

#include "../isa/target.h"

static bool available() { return rnnfast::kAvx512Bf16.available(); }

RNNFAST_TARGET("avx512bf16,avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#define RNNFAST_VECTOR_BYTES 64
#define RNNFAST_MAX_ROWS 32
#define RNNFAST_TILE_REGISTERS
#define RNNFAST_NARROW_BF16(v) ((Half)_mm512_cvtneps_pbh(v))
namespace rnnfast::amx_emulated {
#include "amx_registers_emulated-inl.h"

#include "../vector/isa-inl.h"
} // namespace rnnfast::amx_emulated

namespace rnnfast {
extern const Isa kAmxEmulated{"amx_emulated", available, &kAvx512Kernels,
                              &amx_emulated::kPairKernels};
}
RNNFAST_END_TARGET
#endif
