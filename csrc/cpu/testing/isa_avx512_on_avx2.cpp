// The 64-byte tile compiled for AVX2, so that its logic is tested where there is no AVX-512.
#if defined(__x86_64__)
#include "../isa.h"

#include <cstring>

static bool available() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

// Nothing from a header may be compiled past this line: the linker could keep that copy for all.
#pragma GCC target("avx2,fma")
#define RNNFAST_VECTOR_BYTES 64
#define RNNFAST_EMULATED // a vector is two registers
#define RNNFAST_MAX_ROWS 12
namespace rnnfast::avx512_on_avx2 {
#include "../vector/isa-inl.h"
} // namespace rnnfast::avx512_on_avx2

namespace rnnfast {
static constexpr KernelSet kKernels = avx512_on_avx2::kernel_set();
extern const Isa kAvx512OnAvx2{"avx512_on_avx2", available, &kKernels, nullptr};
} // namespace rnnfast
#endif
