// AVX-512 whose products of bfloat16 run in tiles (AMX): 16 rows by 16 columns by 32 of K in one
// instruction. Has not run on a CPU that has it, so it is used on request alone.
#include "isa.h"

#if defined(RNNFAST_AMX)
#include <cpuid.h>
#include <cstring>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

// Linux gives a process tiles that asks for them (its Documentation/arch/x86/xstate.rst), for good
// and with larger frames of signals: not before they are chosen.
constexpr int kSupported = 0x1021, kRequestPermission = 0x1023, kTileData = 18;

static bool available() {
  constexpr unsigned kTile = 1u << 24, kBf16 = 1u << 22, kBoth = kTile | kBf16;
  unsigned a, b, c, d;
  unsigned long features = 0;
  return rnnfast::kAvx512Bf16.available() && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 &&
         (d & kBoth) == kBoth && syscall(SYS_arch_prctl, kSupported, &features) == 0 &&
         (features >> kTileData & 1) != 0;
}

static bool enable() { return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0; }

#pragma GCC target("avx512bf16,avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#define RNNFAST_VECTOR_BYTES 64
#define RNNFAST_MAX_ROWS 32
#define RNNFAST_TILES
#define RNNFAST_NARROW_BF16(v) ((Half)_mm512_cvtneps_pbh(v)) // subnormals to zeros, as the product
namespace rnnfast::amx {
// The tile registers, by number. Not the intrinsics: those take no template's number, and do not
// say that they read and write memory.
struct Tiles {
  static void shape(const unsigned char* config) {
    __asm__ volatile("ldtilecfg (%0)" ::"r"(config) : "memory");
  }
  static void release() { __asm__ volatile("tilerelease" ::: "memory"); }
  template <int T> static void zero() { __asm__ volatile("tilezero %%tmm%c0" ::"i"(T)); }
  template <int T> static void load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
  }
  template <int T> static void store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
  }
  template <int Sum, int A, int B> static void multiply_add() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B));
  }
};
#include "tile-inl.h"
static constexpr Kernels<bfloat16> kPairs = table<bfloat16, bfloat16>();
} // namespace rnnfast::amx

namespace rnnfast {
extern const Isa kAmx{"amx", available, &kAvx512Tables, &amx::kPairs, enable};
}
#endif
