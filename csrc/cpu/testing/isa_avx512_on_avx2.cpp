// The tile of AVX-512 compiled for AVX2, so that its logic is also tested on CPUs without AVX-512.
#if defined(__x86_64__)
#include "../isa.h"

#include <cstring>

#include "../isa/target.h"

static bool available() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

RNNFAST_TARGET("avx2,fma")
#define RNNFAST_VECTOR_BYTES 64
#define RNNFAST_EMULATED // a vector takes two registers
#define RNNFAST_MAX_ROWS 12
namespace rnnfast::avx512_on_avx2 {
#include "../vector/isa-inl.h"
} // namespace rnnfast::avx512_on_avx2

namespace rnnfast {
extern const Isa kAvx512OnAvx2{"avx512_on_avx2", available, &avx512_on_avx2::kKernels, nullptr};
} // namespace rnnfast
RNNFAST_END_TARGET
#endif
