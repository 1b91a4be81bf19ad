// Measures the cost of barriers on this GPU: the numbers that csrc/cuda/plan.cu assumes. Each line
// of the output has the kind of barrier, the number of thread blocks, nanoseconds, and clocks of a
// multiprocessor.
//
//   nvcc -std=c++17 -O3 -arch=native -I csrc benchmarks/barriers.cu -o barriers && ./barriers
#include "cuda/device.h"

#include <algorithm>
#include <cstdio>
#include <vector>

using namespace rnnfast::cuda;

namespace {

constexpr int kThreads = 256, kRounds = 10000;

__global__ void __launch_bounds__(kThreads) block_barrier(uint32_t*, long long* clocks) {
  const long long begin = clock64();
  for (int i = 0; i < kRounds; ++i) {
    device::sync_block();
  }
  *clocks = clock64() - begin;
}

__global__ void __launch_bounds__(kThreads) cluster_barrier(uint32_t*, long long* clocks) {
  const long long begin = clock64();
  for (int i = 0; i < kRounds; ++i) {
    device::cluster_arrive();
    device::cluster_wait();
  }
  *clocks = clock64() - begin;
}

// A barrier after each thread has stored 4 bytes to every block of the cluster, as the threads of
// an RNN step do. With `Output` each thread also writes 4 bytes of global memory, as a step writes
// its output. The barrier waits for that store, because its release is a fence of the whole GPU.
template <bool Output>
__global__ void __launch_bounds__(kThreads) cluster_exchange(uint32_t* out, long long* clocks) {
  uint32_t* const mine = reinterpret_cast<uint32_t*>(device::shared_memory());
  int ranks;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(ranks));
  device::cluster_arrive();
  device::cluster_wait();
  const long long begin = clock64();
  for (uint32_t i = 0; i < kRounds; ++i) {
    for (int rank = 0; rank < ranks; ++rank) {
      device::store_remote(mine + (i % 2) * kThreads + threadIdx.x, rank, i);
    }
    if constexpr (Output) {
      out[blockIdx.x * kThreads + threadIdx.x] = i;
    }
    device::cluster_arrive();
    device::cluster_wait();
  }
  *clocks = clock64() - begin;
}

// A barrier of the whole grid with one flag for each block, in L2, as the grid kernel has it.
__global__ void __launch_bounds__(kThreads) grid_flags(uint32_t* flags, long long* clocks) {
  const long long begin = clock64();
  for (uint32_t i = 1; i <= kRounds; ++i) {
    device::sync_block();
    if (threadIdx.x == 0) {
      device::store_release(flags + blockIdx.x, i);
    }
    for (int other = threadIdx.x; other < int(gridDim.x); other += kThreads) {
      while (device::load_acquire(flags + other) < i) {
      }
    }
    device::sync_block();
  }
  *clocks = clock64() - begin;
}

void measured(const char* name, void (*kernel)(uint32_t*, long long*), device::Launch how) {
  const size_t size = how.blocks * kThreads * sizeof(uint32_t);
  uint32_t* words;
  long long *clocks, cycles;
  device::check(cudaMalloc(&words, size), name);
  device::check(cudaMalloc(&clocks, sizeof *clocks), name);
  cudaEvent_t begin, end;
  device::check(cudaEventCreate(&begin), name);
  device::check(cudaEventCreate(&end), name);
  std::vector<float> times;
  device::allow(name, kernel, how);
  for (int i = 0; i < 7; ++i) {
    device::check(cudaMemset(words, 0, size), name);
    device::check(cudaEventRecord(begin), name);
    device::launch(name, kernel, kThreads, how, words, clocks);
    device::check(cudaEventRecord(end), name);
    device::check(cudaEventSynchronize(end), name);
    float milliseconds;
    device::check(cudaEventElapsedTime(&milliseconds, begin, end), name);
    times.push_back(milliseconds);
  }
  device::check(cudaMemcpy(&cycles, clocks, sizeof cycles, cudaMemcpyDefault), name);
  std::sort(times.begin(), times.end());
  std::printf("%s %d blocks: %.0f ns, %.0f clocks\n", name,
              how.cluster > 1 ? how.cluster : how.blocks, times[times.size() / 2] * 1e6 / kRounds,
              double(cycles) / kRounds);
  cudaFree(words), cudaFree(clocks);
}

// Measures a barrier. If the device does not support it, prints why, so that the others still run.
void measure(const char* name, void (*kernel)(uint32_t*, long long*), device::Launch how) {
  try {
    measured(name, kernel, how);
  } catch (const Error& error) {
    std::printf("%s %d blocks: %s\n", name, how.blocks, error.what());
  }
}

} // namespace

int main() {
  try {
    const device::Machine machine = device::machine();
    measure("block barrier", block_barrier, {1, 1, false, 0, nullptr});
    for (int size = 2; size <= machine.cluster; size *= 2) {
      const size_t shared = 2 * kThreads * sizeof(uint32_t);
      measure("cluster barrier", cluster_barrier, {size, size, false, shared, nullptr});
      measure("cluster exchange", cluster_exchange<false>, {size, size, false, shared, nullptr});
      measure("exchange, output", cluster_exchange<true>, {size, size, false, shared, nullptr});
      const device::Launch how{size, size, false, size_t(machine.shared), nullptr};
      std::printf("clusters of %d that run at the same time: %d\n", size,
                  device::active_clusters(cluster_barrier, kThreads, how));
    }
    for (const int blocks : {4, 16, 32, 64, machine.processors}) {
      measure("grid flags", grid_flags, {blocks, 1, true, 0, nullptr});
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
