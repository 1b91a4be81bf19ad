// How the kernels run threads, and how threads wait for one another.
#pragma once

#include <atomic>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(RNNFAST_STD_THREADS)
// For ThreadSanitizer, which does not see how the threads of libgomp synchronise.
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#include <pthread.h>
#endif
#include <sched.h>

namespace rnnfast {

#if defined(_OPENMP) && !defined(RNNFAST_STD_THREADS)
// In the child of a fork, libgomp would wait for the threads of the parent, which do not exist in
// the child. The parent may have opened a parallel region in any library, for example in torch. So
// a child never opens one.
inline bool forked = false;
inline const int watching_forks = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#else
constexpr bool forked = false;
#endif

// Run work(thread, threads) on up to `wanted` threads at the same time. The runtime may grant fewer
// threads, so that `threads` is known only inside `work`. With one thread no parallel region is
// opened.
template <class Work> void parallel(int wanted, const Work& work) {
  if (wanted <= 1 || forked) {
    work(0, 1);
    return;
  }
#if defined(RNNFAST_STD_THREADS)
  std::vector<std::thread> workers;
  for (int i = 0; i < wanted; ++i) {
    workers.emplace_back([&work, i, wanted] { work(i, wanted); });
  }
  for (std::thread& thread : workers) {
    thread.join();
  }
#elif defined(_OPENMP)
#pragma omp parallel num_threads(wanted)
  work(omp_get_thread_num(), omp_get_num_threads());
#else
  work(0, 1);
#endif
}

// Wait for a condition that a different thread makes true within microseconds. After 4096 spins the
// other thread is probably waiting for a core, so this thread offers its own.
template <class Condition> void spin_until(const Condition& condition) {
  for (int spins = 0; !condition(); ++spins) {
    if (spins < 4096) {
#if defined(__x86_64__)
      _mm_pause();
#endif
    } else {
      sched_yield();
    }
  }
}

// Threads that meet at a barrier wait until all of them have come.
class Barrier {
public:
  // Wait until `members` threads have called this function. The next use may have a different
  // number of members.
  void wait(int members) {
    if (members == 1) {
      return;
    }
    const int64_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    spin_until([&] { return round_.load(std::memory_order_acquire) != round; });
  }

private:
  alignas(64) std::atomic<int64_t> arrived_{0};
  std::atomic<int64_t> round_{0};
  char pad_[64 - 2 * sizeof(std::atomic<int64_t>)];
};

// How many steps one thread has done. Threads that need its results wait for them.
class Progress {
public:
  void set(int64_t steps) { steps_.store(steps, std::memory_order_release); }
  void wait_for(int64_t steps) const {
    spin_until([&] { return steps_.load(std::memory_order_acquire) >= steps; });
  }

private:
  alignas(64) std::atomic<int64_t> steps_{0};
  char pad_[64 - sizeof(std::atomic<int64_t>)];
};

} // namespace rnnfast
