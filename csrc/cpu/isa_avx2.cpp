// 32-byte vectors, 16 registers: a tile of 6 rows by 2 vectors.
#if defined(__x86_64__)
#include "isa.h"

#include <cstring>

static bool available() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

// Nothing from a header may be compiled past this line: the linker could keep that copy for all.
#pragma GCC target("avx2,fma")
#define RNNFAST_VECTOR_BYTES 32
#define RNNFAST_MAX_ROWS 6
namespace rnnfast::avx2 {
#include "tile-inl.h"
} // namespace rnnfast::avx2

namespace rnnfast {
extern const Isa kAvx2{"avx2", available, avx2::table<float>(), avx2::table<double>()};
}
#endif
