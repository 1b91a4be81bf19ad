// Measures how many bytes a second a level of the memory hierarchy delivers: reading and copying,
// with several threads, each of which has its own part of the data.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

namespace {

typedef std::uint64_t vec __attribute__((vector_size(64)));
constexpr std::size_t kUnroll = 8; // independent loads, which can all be in flight

#if defined(__x86_64__)
#define EACH_ISA __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EACH_ISA
#endif

// Reads forwards and backwards by turns. A kernel would do the same, in order to find the end of
// its last pass in a smaller cache.
EACH_ISA void read_passes(const vec* from, std::size_t blocks, std::size_t passes) {
  vec sums[kUnroll] = {};
  for (std::size_t pass = 0; pass < passes; ++pass) {
    for (std::size_t i = 0; i < blocks; ++i) {
      const vec* block = from + (pass % 2 ? blocks - 1 - i : i) * kUnroll;
#pragma GCC unroll 8
      for (std::size_t k = 0; k < kUnroll; ++k)
        sums[k] |= block[k];
    }
    asm volatile("" ::: "memory"); // keeps the compiler from merging passes over the same data
  }
  asm volatile("" ::"r"(sums) : "memory");
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<char, Free>;

// Allocates pages and touches them on the thread that uses them, so that they are near its core.
Buffer allocate(std::size_t bytes) {
  Buffer buffer(static_cast<char*>(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096)));
  std::memset(buffer.get(), 1, bytes);
  return buffer;
}

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Returns the seconds from the moment when all threads are ready until the last one has done its
// work: the lowest of several tries. `prepare` returns the work of a thread, and runs on that
// thread.
template <typename Prepare> double best_seconds(int threads, int tries, Prepare prepare) {
  double best = 1e30;
  std::atomic<int> ready{0};
  std::vector<double> seconds(threads);
  std::vector<std::thread> team;
  const auto member = [&](int me) {
    const auto work = prepare();
    for (int t = 0; t < tries; ++t) {
      // In each try a thread arrives twice: before its clock starts and after it has stopped.
      const auto wait = [&](int arrivals) {
        ++ready;
        while (ready < arrivals)
          std::this_thread::yield();
      };
      wait((2 * t + 1) * threads);
      const auto start = Clock::now();
      work();
      seconds[me] = seconds_since(start);
      wait((2 * t + 2) * threads);
      if (me == 0)
        best = std::min(best, *std::max_element(seconds.begin(), seconds.end()));
    }
  };
  for (int me = 0; me < threads; ++me)
    team.emplace_back(member, me);
  for (auto& thread : team)
    thread.join();
  return best;
}

} // namespace

extern "C" {

// Returns the GB/s of `threads` threads together that read `bytes` bytes again and again. Each
// thread reads its own share.
double read_gbs(std::size_t bytes, int threads) {
  const std::size_t block = kUnroll * sizeof(vec);
  const std::size_t blocks = std::max<std::size_t>(1, bytes / threads / block);
  const std::size_t passes = std::max<std::size_t>(2, (std::size_t{1} << 28) / (blocks * block));
  const double seconds = best_seconds(threads, 7, [=] {
    Buffer buffer = allocate(blocks * block);
    return [=, buffer = std::shared_ptr<char>(std::move(buffer))] {
      read_passes(reinterpret_cast<const vec*>(buffer.get()), blocks, passes);
    };
  });
  return 1e-9 * blocks * block * passes * threads / seconds;
}

// Returns the GB/s of a copy of `bytes` bytes, with read and written bytes added. Each thread
// copies its own share.
double copy_gbs(std::size_t bytes, int threads) {
  const std::size_t share = bytes / threads;
  const double seconds = best_seconds(threads, 7, [=] {
    std::shared_ptr<char> from = allocate(share), to = allocate(share);
    return [=] { std::memcpy(to.get(), from.get(), share); };
  });
  return 2e-9 * share * threads / seconds;
}
}
