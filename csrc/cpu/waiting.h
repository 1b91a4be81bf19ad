// How the threads of a parallel region wait for one another, and how they find out that a single
// thread would be faster.
//
// If a different process computes on the core of a thread, the system puts that thread aside for
// milliseconds at a time, and the threads that need its results wait. A step of a recurrence takes
// microseconds, so threads that meet after each step can be many times slower than one thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <memory>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <pthread.h>
#include <sched.h>

namespace rnnfast {

using Nanoseconds = int64_t;

inline Nanoseconds now() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

#if defined(RNNFAST_STD_THREADS)
// The test program decides when threads stop working together: after they have asked this often.
inline std::atomic<int64_t> questions_together{INT64_MAX};
#endif

// The threads of one parallel region, and how long they have waited for threads that did not run.
class Region {
public:
  explicit Region(int most_threads) : clocks_(new std::atomic<clockid_t>[most_threads] {}) {}

  // The region of the calling thread, or nullptr.
  static Region* current() { return current_; }

  // Each thread calls `enter` first and `leave` last. `leave` waits for the other threads, so that
  // this waiting is measured, too.
  inline void enter(int thread, int threads);
  inline void leave(int thread);

  // Decide whether a single thread should do the rest of the work, because the threads have already
  // lost time by working together.
  bool hand_over() {
#if defined(RNNFAST_STD_THREADS)
    const bool alone = questions_together.fetch_sub(1, std::memory_order_relaxed) <= 0;
    const Nanoseconds lost = alone ? 1 : 0;
#else
    const Nanoseconds lost = time_lost();
#endif
    if (lost > 0) {
      lost_.store(lost, std::memory_order_relaxed);
    }
    return lost > 0;
  }

  // How much more time the region has taken so far, or until it handed over, than a single thread
  // would have taken. Without the waiting, the threads would have taken as long as they have run,
  // and a single thread would take at most `threads` times as long.
  Nanoseconds time_lost() const {
    const Nanoseconds waited = waited_.load(std::memory_order_relaxed);
    if (waited == 0) {
      return 0; // so that the usual case does not read the clock
    }
    // All threads but one wait for the one that does not run. The waits count twice, because the
    // short ones are not measured. Counted once, (1000,1,1,1000) took 2.15 times as long to train
    // as on one thread.
    const int threads = threads_.load(std::memory_order_relaxed);
    const Nanoseconds elapsed = now() - begin_, ran = elapsed - 2 * waited / (threads - 1);
    return std::max(lost_.load(std::memory_order_relaxed), elapsed - threads * ran);
  }

private:
  friend class LongWait;
  // These values stand for the clock of a thread that has not come yet, and of one that has left or
  // waits itself.
  static constexpr clockid_t kAbsent = clockid_t(0), kIdle = clockid_t(1);

  static inline thread_local Region* current_ = nullptr;
  static inline thread_local int thread_ = 0; // the number of the calling thread in its region

  const Nanoseconds begin_ = now();
  std::unique_ptr<std::atomic<clockid_t>[]> clocks_; // for each thread: its processor time
  std::atomic<int> threads_{0}, finished_{0};
  std::atomic<Nanoseconds> waited_{0}; // the waits of all threads together
  std::atomic<Nanoseconds> lost_{0};   // the time lost when the region handed over
};

// Measures how long the calling thread waits for threads that do not run. Such a thread has used
// less processor time than the wait has taken. A wait for a thread that runs is not counted,
// because that thread does work that a single thread would have to do as well.
class LongWait {
public:
  LongWait() : region_(Region::current()), begin_(now()) {
    if (region_ != nullptr) {
      own_ = region_->clocks_[Region::thread_].exchange(Region::kIdle);
    }
    for (int i = 0; i < threads(); ++i) {
      before_.push_back({clock(i), processor_time(clock(i))});
    }
  }
  ~LongWait() {
    const Nanoseconds took = now() - begin_;
    Nanoseconds longest = 0;
    for (int i = 0; i < threads(); ++i) {
      if (before_[i].clock == Region::kAbsent) {
        longest = took;
      } else if (before_[i].clock != Region::kIdle && before_[i].clock == clock(i)) {
        longest = std::max(longest, took - (processor_time(clock(i)) - before_[i].time));
      }
    }
    if (region_ != nullptr) {
      region_->clocks_[Region::thread_].store(own_);
      region_->waited_.fetch_add(longest, std::memory_order_relaxed);
    }
  }
  LongWait(const LongWait&) = delete;
  LongWait& operator=(const LongWait&) = delete;

private:
  struct Reading {
    clockid_t clock;
    Nanoseconds time;
  };

  int threads() const { return region_ == nullptr ? 0 : region_->threads_.load(); }
  clockid_t clock(int thread) const { return region_->clocks_[thread].load(); }
  static Nanoseconds processor_time(clockid_t clock) {
    timespec time{};
    if (clock != Region::kAbsent && clock != Region::kIdle) {
      clock_gettime(clock, &time);
    }
    return Nanoseconds(time.tv_sec) * 1000000000 + time.tv_nsec;
  }

  Region* const region_;
  const Nanoseconds begin_;
  clockid_t own_{};
  std::vector<Reading> before_;
};

// Make the core wait for some tens of nanoseconds before the next spin.
inline void pause_spinning() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb" ::: "memory"); // most cores do not wait at all at a `yield`
#endif
}

// Wait for a condition that a different thread makes true within microseconds. After 4096 spins the
// other thread is probably waiting for a core, so this thread offers its own.
template <class Condition> void spin_until(const Condition& condition) {
  for (int spins = 0; spins < 4096; ++spins) {
    if (condition()) {
      return;
    }
    pause_spinning();
  }
  const LongWait wait;
  while (!condition()) {
    sched_yield();
  }
}

inline void Region::enter(int thread, int threads) {
  threads_.store(threads, std::memory_order_relaxed);
  clockid_t clock = kIdle; // where the system cannot tell, no wait is measured
#if defined(__linux__)
  if (pthread_getcpuclockid(pthread_self(), &clock) == 0) {
    current_ = this;
    thread_ = thread;
  } else {
    clock = kIdle;
  }
#endif
  clocks_[thread].store(clock);
}

inline void Region::leave(int thread) {
  const int threads = threads_.load(std::memory_order_relaxed);
  finished_.fetch_add(1, std::memory_order_acq_rel);
  if (lost_.load(std::memory_order_relaxed) == 0) {
    spin_until([&] { return finished_.load(std::memory_order_acquire) == threads; });
  } else {
    clocks_[thread].store(kIdle); // the other threads may go on for a long time
  }
  current_ = nullptr;
}

// Threads that meet at a barrier wait until all of them have come.
class Barrier {
public:
  // Wait until `members` threads have called this function. The next use may have a different
  // number of members.
  void wait(int members) {
    meet(members, [] {});
  }

  // Wait like `wait`, and return whether a single thread should do the rest of the work. All
  // members call this function and get the same answer.
  bool wait_and_decide(int members) {
    if (members == 1) {
      return false;
    }
    meet(members, [this] {
      Region* const region = Region::current();
      alone_ = region != nullptr && region->hand_over();
    });
    return alone_; // No thread writes it before all members have come to the next decision.
  }

private:
  // The thread that comes last calls `decide` before the others go on.
  template <class Decide> void meet(int members, const Decide& decide) {
    if (members == 1) {
      return;
    }
    const int64_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
      arrived_.store(0, std::memory_order_relaxed);
      decide();
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    spin_until([&] { return round_.load(std::memory_order_acquire) != round; });
  }

  alignas(64) std::atomic<int64_t> arrived_{0};
  std::atomic<int64_t> round_{0};
  bool alone_ = false; // the last decision
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
};

} // namespace rnnfast
