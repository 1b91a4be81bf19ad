// The threads of shim.h: fibers, what they wait for, and the state of the machine.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <vector>

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_ignore_thread_begin();
extern "C" void __tsan_ignore_thread_end();
#endif

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

namespace rnnfast::cuda::device {

// Where a fiber or the scheduler goes on. swapcontext asks the system for the signal mask twice,
// which is slow. So a fiber begins with setcontext and goes on with longjmp. ThreadSanitizer
// follows jumps in its own way, and uses swapcontext.
struct Where {
  ucontext_t context;
  jmp_buf jump;
  bool begun = false;
  void* tsan = nullptr;
};
__attribute__((noinline)) inline void switch_to(Where& from, Where& to) {
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
  swapcontext(&from.context, &to.context);
#else
  const bool begin = !to.begun;
  to.begun = true;
  if (_setjmp(from.jump) == 0) {
    if (begin) {
      setcontext(&to.context);
    }
    _longjmp(to.jump, 1);
  }
#endif
}

struct Fiber;

// Every member waits for all others. `order` is for ThreadSanitizer. It has one element for even
// and one for odd phases, so that no member seems to come after what a different member did after
// this barrier.
struct Barrier {
  explicit Barrier(int members) : members(members) {}
  const int members;
  int arrived = 0;
  int64_t phase = 0;
  std::atomic<int64_t> order[2] = {};
  std::vector<Fiber*> waiting;
};

struct Warp {
  Barrier barrier = Barrier(32);
  int64_t parity[32] = {};
  uint32_t words[2][32][8]; // of two collective calls, so that each needs only one barrier
};

// Counts arrivals and bytes. A thread waits for the parity of the phase, as on a GPU.
struct Counter {
  int arrivals;
  int pending = arrivals;
  int64_t bytes = 0, phase = 0;
  std::atomic<int64_t> order[2] = {};
  std::vector<Fiber*> waiting;

  explicit Counter(int arrivals) : arrivals(arrivals) {}
};

struct Block;
struct Cluster_ {
  Barrier barrier;
  std::vector<Block*> blocks;
};

struct Block {
  int index;
  Barrier barrier;
  std::vector<Warp> warps;
  uint4* shared;
  Cluster_* cluster;
  int rank;
  size_t bytes;    // of shared memory
  int running = 0; // threads
  std::vector<std::unique_ptr<Counter>> counters{};
};

// What a fiber needs from the system. The next launch uses it again.
struct Seat {
  void* stack;
  void* tsan = nullptr;
};

struct Fiber {
  Where place;
  Seat seat;
  Block* block;
  int thread;
  int64_t cluster_phase = 0;
  struct Copy {
    uint4* to;
    const uint4* from;
  };
  std::vector<std::vector<Copy>> groups{1};
  bool done = false;
};

// The state of the machine, and what a test sets.
struct Machine {
  int id, processors, shared, cluster;
};

struct Host {
  Machine machine{0, 4, 227 << 10, 16};
  uint64_t seed = 1;
  int64_t launches = 0;

  std::vector<Fiber*> ready;
  Fiber* current = nullptr;
  Where place;
  int64_t polls = 0;
  std::function<void()> work;
  std::deque<Seat> seats; // the free ones, in the order in which they became free

  // A store on its way: 16 bytes that a counter counts, or 8 bytes.
  struct Store {
    Block* block; // or nullptr: to device memory
    void* to;
    uint32_t words[4];
    Counter* counter;
  };
  std::vector<Store> stores;

  // The threads that are late: those of this block, warp and thread. -1 stands for any.
  bool delays = false;
  int late_block = 0, late_warp = 0, late_thread = 0;

  uint64_t random() {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return seed >> 33;
  }
};
inline Host host;

[[noreturn]] inline void give_up(const char* why) {
  std::fprintf(stderr, "FAILED: %s\n", why);
  std::abort();
}

constexpr size_t kStack = 256 << 10;

// While an object exists, ThreadSanitizer ignores accesses. All fibers share the state of the shim,
// but only one thread of the system runs them.
struct Quiet {
#if defined(__SANITIZE_THREAD__)
  Quiet() { __tsan_ignore_thread_begin(); }
  ~Quiet() { __tsan_ignore_thread_end(); }
#else
  Quiet() {}
#endif
  Quiet(const Quiet&) = delete;
};
__attribute__((no_sanitize("thread"), noinline)) inline Fiber& self() { return *host.current; }

// Goes back to the scheduler, which later continues the fibers in `ready`.
inline void suspend() { switch_to(self().place, host.place); }

// Lets other threads go first, now and then.
inline void dawdle() {
  const Quiet quiet;
  if (host.random() % 8 == 0) {
    host.ready.push_back(&self());
    suspend();
  }
}

inline int64_t arrive(Barrier& b) {
  const Quiet quiet;
  const int64_t phase = b.phase;
  b.order[phase % 2].fetch_add(1, std::memory_order_acq_rel);
  if (++b.arrived == b.members) {
    b.arrived = 0;
    ++b.phase;
    host.ready.insert(host.ready.end(), b.waiting.begin(), b.waiting.end());
    b.waiting.clear();
    host.polls = 0;
  }
  return phase;
}
inline void wait(Barrier& b, int64_t phase) {
  {
    const Quiet quiet;
    if (b.phase == phase) {
      b.waiting.push_back(&self());
      suspend();
    } else {
      dawdle();
    }
  }
  b.order[phase % 2].load(std::memory_order_acquire);
}

} // namespace rnnfast::cuda::device
