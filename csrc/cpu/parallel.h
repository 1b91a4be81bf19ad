// How the kernels run threads.
#pragma once

#include "waiting.h"

#if defined(RNNFAST_STD_THREADS)
// For ThreadSanitizer, which does not see how the threads of libgomp synchronise.
#include <thread>
#include <vector>
#elif defined(RNNFAST_LIBGOMP)
// These functions are what GCC calls for a parallel region of OpenMP. Clang would call its own
// runtime instead, but torch brings libgomp, and a process must not have two runtimes.
extern "C" void GOMP_parallel(void (*region)(void*), void* data, unsigned threads, unsigned flags);
extern "C" int omp_get_thread_num();
extern "C" int omp_get_num_threads();
#endif

namespace rnnfast {

#if defined(RNNFAST_LIBGOMP) && !defined(RNNFAST_STD_THREADS)
// In the child of a fork, libgomp would wait for the threads of the parent, which do not exist in
// the child. The parent may have opened a parallel region in any library, for example in torch. So
// a child never opens one.
inline bool forked = false;
inline const int watching_forks = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#else
constexpr bool forked = false;
#endif

// For this much computing time, calls run one thread only. A call that has lost time because its
// threads waited for a busy core sets it to kPatience times that loss. So on a busy machine the
// attempts to use several threads cost at most 1 / kPatience of the time that one thread takes.
inline std::atomic<Nanoseconds> time_alone{0};
constexpr Nanoseconds kPatience = 8;

// Run work(thread, threads) on up to `wanted` threads at the same time. The runtime may grant fewer
// threads, so that `threads` is known only inside `work`. With one thread no parallel region is
// opened.
template <class Work> void parallel(int wanted, const Work& work) {
  if (wanted <= 1 || forked) {
    work(0, 1);
    return;
  }
  if (time_alone.load(std::memory_order_relaxed) > 0) {
    const Nanoseconds begin = now();
    work(0, 1);
    time_alone.fetch_sub(now() - begin, std::memory_order_relaxed);
    return;
  }
  Region region(wanted);
  auto run = [&](int thread, int threads) {
    region.enter(thread, threads);
    work(thread, threads);
    region.leave(thread);
  };
#if defined(RNNFAST_STD_THREADS)
  std::vector<std::thread> workers;
  for (int i = 0; i < wanted; ++i) {
    workers.emplace_back([&run, i, wanted] { run(i, wanted); });
  }
  for (std::thread& thread : workers) {
    thread.join();
  }
#elif defined(RNNFAST_LIBGOMP)
  const auto call = [](void* data) noexcept {
    (*static_cast<decltype(run)*>(data))(omp_get_thread_num(), omp_get_num_threads());
  };
  GOMP_parallel(call, &run, wanted, 0);
  const Nanoseconds lost = region.time_lost();
  if (lost > 0) {
    time_alone.store(kPatience * lost, std::memory_order_relaxed);
  }
#else
  run(0, 1);
#endif
}

} // namespace rnnfast
