// What the kernels ask of the machine, in one place, so that their source also compiles with a C++
// compiler alone: tests/native/shim.h then stands in for the machine, thread by thread. Every
// instruction with a meaning beyond C++ is here, and nothing else is.
#pragma once

#include <cstdint>

#if !defined(__CUDACC__)
#include "shim.h" // tests only
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "recurrence.h"

#define RNNFAST_DEVICE __device__ __forceinline__
#define RNNFAST_BOTH __host__ __device__ __forceinline__

namespace rnnfast::cuda::device {

RNNFAST_DEVICE int thread() { return threadIdx.x; }
RNNFAST_DEVICE int block() { return blockIdx.x; }
// The same in all lanes of a warp, and known to be by the compiler.
RNNFAST_DEVICE int warp() { return __shfl_sync(~0u, threadIdx.x / 32, 0); }

RNNFAST_DEVICE uint4* shared_memory() {
  extern __shared__ uint4 memory[];
  return memory;
}

// Barrier of the block; what came before it in any thread is visible after it in all.
RNNFAST_DEVICE void sync_block() { __syncthreads(); }

// Brings the lanes of a warp together again: shuffles and matrix instructions are of all of them.
RNNFAST_DEVICE void sync_warp() { __syncwarp(); }

template <class T> RNNFAST_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(~0u, value, mask);
}

// Barrier of the cluster, in two halves: what came before `arrive` in any thread, in the shared
// memory of any block, is visible after `wait` in all.
#if __CUDA_ARCH__ >= 900
constexpr bool kClusters = true;
RNNFAST_DEVICE void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
RNNFAST_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// Stores where block `rank` of the cluster has what `mine` is in this block. V: 4, 8 or 16 bytes.
template <class V> RNNFAST_DEVICE void store_remote(V* mine, int rank, const V& value) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  const uint32_t local = static_cast<uint32_t>(__cvta_generic_to_shared(mine));
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(local), "r"(rank));
  const uint32_t* const word = reinterpret_cast<const uint32_t*>(&value);
  if constexpr (sizeof(V) == 4) {
    asm volatile("st.shared::cluster.b32 [%0], %1;" ::"r"(there), "r"(word[0]) : "memory");
  } else if constexpr (sizeof(V) == 8) {
    asm volatile("st.shared::cluster.v2.b32 [%0], {%1, %2};" ::"r"(there), "r"(word[0]),
                 "r"(word[1])
                 : "memory");
  } else {
    asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(there), "r"(word[0]),
                 "r"(word[1]), "r"(word[2]), "r"(word[3])
                 : "memory");
  }
}
#else // nor any cluster of more than one block
constexpr bool kClusters = false;
RNNFAST_DEVICE void cluster_arrive() {}
RNNFAST_DEVICE void cluster_wait() {}
template <class V> RNNFAST_DEVICE void store_remote(V*, int, const V&) {}
#endif

// Between blocks, through L2: what came before the release, in this thread or before a barrier of
// its block, is visible after an acquire that reads its value, in that thread and after a barrier
// of its block.
RNNFAST_DEVICE void store_release(uint32_t* flag, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
RNNFAST_DEVICE uint32_t load_acquire(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
RNNFAST_DEVICE void pause() {}

// 16 bytes from L2, past L1, which could hold what was there before another block wrote.
RNNFAST_DEVICE void copy_async(uint4* shared, const uint4* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
RNNFAST_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the last `N` groups of this thread's copies have arrived.
template <int N> RNNFAST_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// D += A B by a warp, A 16 x K, B K x 8, D 16 x 8. Lane l = 4 g + t holds of A rows g (a0, a2) and
// g + 8 (a1, a3), of B column g, of D columns 2 t and 2 t + 1 of row g (c0, c1) and g + 8. With
// K = 16 of two bytes a word is k = 2 t, 2 t + 1, or with 8 more in a2, a3 and b1; with K = 8 of
// tf32 it is k = t, or t + 4.
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
// To 2^-11 of the result, an eighth of bfloat16's last place.
RNNFAST_DEVICE float tanh_roughly(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The host's side.

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    cudaGetLastError(); // or the next call would report it again
    throw Error(std::string("rnnfast CUDA ") + what + ": " + cudaGetErrorString(error));
  }
}

// The current device.
struct Machine {
  int processors, shared; // bytes of shared memory that a block may have
  int cluster;            // blocks in a cluster, at most; 1: has no clusters
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
  const Machine machine{attribute(cudaDevAttrMultiProcessorCount),
                        attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), clusters ? 16 : 1};
  return known[device] = machine;
}

struct Launch {
  int blocks, cluster; // cluster 1: none
  bool cooperative;    // all blocks run at the same time
  size_t shared;       // bytes a block
  void* stream;
};

// As much as there is, not as much as this launch needs: another thread's may need more.
template <class Kernel> void allow(const char* name, Kernel* kernel, const Launch& launch) {
  const void* const function = reinterpret_cast<const void*>(kernel);
  check(
      cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, machine().shared),
      name);
  if (launch.cluster > 8) {
    check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), name);
  }
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

// Of more than 48 KiB of shared memory, or 8 blocks a cluster, after `allow` for that kernel.
template <class... A>
void launch(const char* name, void (*kernel)(A...), int threads, const Launch& how,
            A... arguments) {
  const Config config(how, threads);
  check(cudaLaunchKernelEx(&config.config, kernel, arguments...), name);
}

// Clusters that can run at the same time; 0 where the device cannot have such a cluster. Asked
// once: the driver takes microseconds.
template <class Kernel> int active_clusters(Kernel* kernel, int threads, const Launch& how) {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  static std::mutex mutex;
  static std::map<std::tuple<int, Kernel*, int>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const std::tuple key(device, kernel, how.cluster);
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
