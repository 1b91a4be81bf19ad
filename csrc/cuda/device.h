// The functions that the kernels need from a GPU. They are in one file, so that the kernels also
// compile with a plain C++ compiler: then tests/native/shim.h stands in for the GPU. Every
// instruction that C++ does not have is here, and nothing else is.
#pragma once

#include <cstdint>

#if !defined(__CUDACC__)
#include "shim.h" // for the tests only
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <map>
#include <mutex>
#include <set>
#include <string>
#include <tuple>

#include "recurrence.h"

#define RNNFAST_DEVICE __device__ __forceinline__
#define RNNFAST_BOTH __host__ __device__ __forceinline__

namespace rnnfast::cuda::device {

RNNFAST_DEVICE int thread() { return threadIdx.x; }
RNNFAST_DEVICE int block() { return blockIdx.x; }
// The result is the same in all lanes of a warp, and the compiler knows that it is.
RNNFAST_DEVICE int warp() { return __shfl_sync(~0u, threadIdx.x / 32, 0); }

RNNFAST_DEVICE uint4* shared_memory() {
  extern __shared__ uint4 memory[];
  return memory;
}

// The barrier of the block. Writes before it in any thread are visible after it in all threads.
RNNFAST_DEVICE void sync_block() { __syncthreads(); }

// Brings the lanes of a warp together again, as shuffles and matrix instructions need them.
RNNFAST_DEVICE void sync_warp() { __syncwarp(); }

template <class T> RNNFAST_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(~0u, value, mask);
}

// An address in the shared memory of any block of the cluster. Arithmetic on it stays in that
// block.
using Address = uint32_t;
RNNFAST_DEVICE Address address(const void* shared) {
  return static_cast<Address>(__cvta_generic_to_shared(shared));
}

// An mbarrier counts arrivals and bytes. Its phase ends when the number of threads that `init` set
// and the bytes that these threads expect have arrived. Then the next phase begins.
using Mbarrier = uint64_t;

#if __CUDA_ARCH__ >= 900
constexpr bool kClusters = true;

// Writes before it in any thread of the cluster are visible after it in all threads.
RNNFAST_DEVICE void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// Returns the address in block `rank` of the cluster that corresponds to `local` in this block.
RNNFAST_DEVICE Address remote(Address local, int rank) {
  Address there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(local), "r"(rank));
  return there;
}

// One thread calls this before `sync_cluster`, which makes the barrier visible to other blocks.
RNNFAST_DEVICE void mbarrier_init(Mbarrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(barrier)), "r"(arrivals)
               : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Arrives at a barrier of this block, and expects `bytes` more in the current phase.
RNNFAST_DEVICE void mbarrier_expect(Mbarrier* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(barrier)),
               "r"(bytes)
               : "memory");
}
// Waits until the phase of this parity has ended. The first phase has parity 0. All bytes that
// `store_async` wrote in the phase are visible afterwards. The wait is relaxed and the fence is for
// shared memory only, because an acquire for the cluster also empties L1. CUDA 12.6 and earlier do
// not have that fence.
#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 7)
#define RNNFAST_ORDER "relaxed"
#define RNNFAST_FENCE "fence.acquire.sync_restrict::shared::cluster.cluster;"
#else
#define RNNFAST_ORDER "acquire"
#define RNNFAST_FENCE ""
#endif
RNNFAST_DEVICE void mbarrier_wait(Mbarrier* barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "mbarrier.try_wait.parity." RNNFAST_ORDER ".cluster.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}"
                 : "=r"(done)
                 : "r"(address(barrier)), "r"(parity)
                 : "memory");
  } while (done == 0);
  asm volatile(RNNFAST_FENCE ::: "memory");
}
#undef RNNFAST_ORDER
#undef RNNFAST_FENCE
// If `active`, stores 16 bytes and then counts them at a barrier. Both are in the same block of a
// cluster of at least two blocks.
RNNFAST_DEVICE void store_async(bool active, Address to, const uint4& value, Address barrier) {
  asm volatile("{\n"
               ".reg .pred p;\n"
               "setp.ne.u32 p, %6, 0;\n"
               "@p st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 "
               "[%0], {%1, %2, %3, %4}, [%5];\n"
               "}" ::"r"(to),
               "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(barrier),
               "r"(uint32_t(active))
               : "memory");
}
#else // these devices have no clusters of several blocks
constexpr bool kClusters = false;
RNNFAST_DEVICE void sync_cluster() {}
RNNFAST_DEVICE Address remote(Address local, int) { return local; }
RNNFAST_DEVICE void mbarrier_init(Mbarrier*, int) {}
RNNFAST_DEVICE void mbarrier_expect(Mbarrier*, uint32_t) {}
RNNFAST_DEVICE void mbarrier_wait(Mbarrier*, uint32_t) {}
RNNFAST_DEVICE void store_async(bool, Address, const uint4&, Address) {}
#endif

// One half of an exchange through L2. It stores 4 bytes of data and the number of their step in one
// access, so that a reader that finds the number has the data.
RNNFAST_DEVICE void store_numbered(uint64_t* to, uint32_t data, uint32_t number) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(uint64_t(number) << 32 | data)
               : "memory");
}
RNNFAST_DEVICE uint64_t load_numbered(const uint64_t* from) {
  uint64_t value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  return value;
}

// Orders blocks through L2. Writes before the release, in this thread or before a barrier of its
// block, are visible after an acquire that reads its value, in that thread and after a barrier of
// its block.
RNNFAST_DEVICE void add_release(uint32_t* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
RNNFAST_DEVICE uint32_t load_acquire(const uint32_t* counter) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}
RNNFAST_DEVICE void pause() {}

// Copies 16 bytes from L2. L1 is bypassed, because it could hold a value from before the store of a
// different block.
RNNFAST_DEVICE void copy_async(uint4* shared, const uint4* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
RNNFAST_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all groups of this thread's copies except the last `N` have arrived.
template <int N> RNNFAST_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// A warp computes D += A B, where A is 16 x K, B is K x 8 and D is 16 x 8. Lane l = 4 g + t holds:
// - of A, row g (a0, a2) and row g + 8 (a1, a3);
// - of B, column g;
// - of D, columns 2 t and 2 t + 1 of row g (c0, c1) and of row g + 8 (c2, c3).
// With two bytes an element and K = 16, a word holds k = 2 t and 2 t + 1; in a2, a3 and b1 these
// are 8 more. With tf32 and K = 8, a word holds k = t, and k = t + 4 in a2, a3 and b1.
#define RNNFAST_MMA(NAME, SHAPE)                                                                   \
  RNNFAST_DEVICE void NAME(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,      \
                           uint32_t b0, uint32_t b1) {                                             \
    asm volatile("mma.sync.aligned." SHAPE                                                         \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                  \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));                          \
  }
RNNFAST_MMA(mma_bfloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
RNNFAST_MMA(mma_float16, "m16n8k16.row.col.f32.f16.f16.f32")
RNNFAST_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef RNNFAST_MMA

RNNFAST_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
RNNFAST_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
RNNFAST_DEVICE double double_of(uint32_t low, uint32_t high) { return __hiloint2double(high, low); }

// Returns two numbers in one word, the first in its lower half.
RNNFAST_DEVICE uint32_t to_bfloat16s(float first, float second) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
  return reinterpret_cast<const uint32_t&>(both);
}
RNNFAST_DEVICE uint32_t to_float16s(float first, float second) {
  const __half2 both = __floats2half2_rn(first, second);
  return reinterpret_cast<const uint32_t&>(both);
}
RNNFAST_DEVICE uint16_t to_bfloat16(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
RNNFAST_DEVICE float from_bfloat16(uint16_t x) { return __bfloat162float(__ushort_as_bfloat16(x)); }
RNNFAST_DEVICE uint16_t to_float16(float x) { return __half_as_ushort(__float2half_rn(x)); }
RNNFAST_DEVICE float from_float16(uint16_t x) { return __half2float(__ushort_as_half(x)); }
RNNFAST_DEVICE float to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}
// The relative error is 2^-11, an eighth of the last place of bfloat16.
RNNFAST_DEVICE float tanh_roughly(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The relative error is 2^-23, and a result below 2^-126 becomes 0. The reciprocal that is rounded
// correctly would call a function for such results.
RNNFAST_DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
RNNFAST_DEVICE double reciprocal(double x) { return 1 / x; }

// Returns max(x, 0). NaN stays NaN.
RNNFAST_DEVICE float relu(float x) {
  float y;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(y) : "f"(x));
  return y;
}
// Selects without a jump. With ?: the compiler would jump around the value that is not needed.
RNNFAST_DEVICE float select(bool which, float yes, float no) {
  float y;
  asm("{\n"
      ".reg .pred p;\n"
      "setp.ne.u32 p, %1, 0;\n"
      "selp.f32 %0, %2, %3, p;\n"
      "}"
      : "=f"(y)
      : "r"(uint32_t(which)), "f"(yes), "f"(no));
  return y;
}

// Hides from the compiler how a pointer was computed. Otherwise it would compute the pointer anew
// at each use instead of keeping it.
template <class T> RNNFAST_DEVICE void keep(T*& pointer) { asm volatile("" : "+l"(pointer)); }

// The functions that the host calls.

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    cudaGetLastError(); // otherwise the next call would report it again
    throw Error(std::string("rnnfast CUDA ") + what + ": " + cudaGetErrorString(error));
  }
}

// The current device.
struct Machine {
  int id;
  int processors, shared; // bytes of shared memory that a block may have
  int cluster;            // the most blocks in a cluster; 1 if there are no clusters
};
inline Machine machine() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  static std::mutex mutex;
  static std::map<int, Machine> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) {
    return found->second;
  }
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
    return value;
  };
  const bool clusters = attribute(cudaDevAttrComputeCapabilityMajor) >= 9;
  const Machine machine{device, attribute(cudaDevAttrMultiProcessorCount),
                        attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), clusters ? 16 : 1};
  return known[device] = machine;
}

struct Launch {
  int blocks, cluster; // the cluster is 1 if there is none
  bool cooperative;    // all blocks run at the same time
  size_t shared;       // bytes of a block
  void* stream;
};

// Allows the kernel all the shared memory that there is, because a launch by a different thread may
// need more than this one. This happens only once for each device and kernel, because the driver
// takes microseconds.
template <class Kernel> void allow(const char* name, Kernel* kernel, const Launch& launch) {
  const Machine here = machine();
  const void* const function = reinterpret_cast<const void*>(kernel);
  static std::mutex mutex;
  static std::set<std::tuple<int, const void*, bool>> done;
  const std::lock_guard<std::mutex> lock(mutex);
  const std::tuple key(here.id, function, launch.cluster > 8);
  if (done.count(key) != 0) {
    return;
  }
  check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, here.shared),
        name);
  if (launch.cluster > 8) {
    check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), name);
  }
  done.insert(key);
}

struct Config {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attribute[2];

  Config(const Launch& launch, int threads) {
    config.gridDim = dim3(launch.blocks), config.blockDim = dim3(threads);
    config.dynamicSmemBytes = launch.shared;
    config.stream = static_cast<cudaStream_t>(launch.stream);
    config.attrs = attribute;
    if (launch.cluster > 1) {
      cudaLaunchAttribute& a = attribute[config.numAttrs++];
      a.id = cudaLaunchAttributeClusterDimension;
      a.val.clusterDim.x = launch.cluster, a.val.clusterDim.y = a.val.clusterDim.z = 1;
    }
    if (launch.cooperative) {
      cudaLaunchAttribute& a = attribute[config.numAttrs++];
      a.id = cudaLaunchAttributeCooperative;
      a.val.cooperative = 1;
    }
  }
  Config(const Config&) = delete;
};

// Starts a kernel. With more than 48 KiB of shared memory or 8 blocks in a cluster, `allow` must
// have been called for the kernel.
template <class... A>
void launch(const char* name, void (*kernel)(A...), int threads, const Launch& how,
            A... arguments) {
  const Config config(how, threads);
  check(cudaLaunchKernelEx(&config.config, kernel, arguments...), name);
}

// Returns how many clusters can run at the same time, or 0 if the device cannot have such a
// cluster. The driver is asked only once, because it takes microseconds.
template <class Kernel> int active_clusters(Kernel* kernel, int threads, const Launch& how) {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  static std::mutex mutex;
  static std::map<std::tuple<int, Kernel*, int, int>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const std::tuple key(device, kernel, how.cluster, threads);
  const auto found = known.find(key);
  if (found != known.end()) {
    return found->second;
  }
  int clusters = 0;
  try {
    allow("cluster kernel", kernel, how);
    const Config config(how, threads);
    check(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config.config), "cluster kernel");
  } catch (const Error&) {
    clusters = 0;
  }
  return known[key] = clusters;
}

} // namespace rnnfast::cuda::device

#endif
