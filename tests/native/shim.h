// This file stands in for a GPU, so that csrc/cuda compiles with a C++ compiler and runs on the
// host. It defines what device.h defines, with a fiber for every CUDA thread. One thread of the
// system runs all fibers in an order that is drawn at random from a seed, and switches wherever a
// fiber waits. ThreadSanitizer is told that the fibers are threads. It reports every pair of
// accesses that no barrier and no release and acquire puts in an order, even if this schedule gave
// the right result. A wait that can never end aborts the program.
//
// The shim is stricter than a GPU where that is possible:
// - Shared memory begins as NaN, in an allocation of exactly its size.
// - Asynchronous copies happen at the wait and not before.
// - The blocks of a launch that is not cooperative run one after another, in random order.
// - In most launches one thread, warp or block, which is drawn anew now and then, hardly runs while
//   others can run.
// - A store whose arrival has no fixed time (store_async, store_numbered) arrives late and in any
//   order.
// So a missing wait shows in the results. Under ThreadSanitizer stores are not late, because it
// would take a late store for that of a different thread. There it finds the missing wait itself.
#pragma once

#include "shim_fibers.h"

#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define RNNFAST_DEVICE inline
#define RNNFAST_BOTH inline

using std::max;
using std::min;

namespace rnnfast::cuda::device {

inline int thread() { return self().thread; }
inline int block() { return self().block->index; }
inline int warp() { return thread() / 32; }
inline uint4* shared_memory() { return self().block->shared; }
inline void sync_block() {
  Barrier& b = self().block->barrier;
  wait(b, arrive(b));
}

inline void sync_warp() {} // a real one orders more

// Gives all lanes of the warp the words of every lane.
inline const uint32_t (&exchange(const uint32_t* words, int count))[32][8] {
  Warp& w = self().block->warps[warp()];
  const int lane = thread() % 32;
  auto& all = w.words[w.parity[lane]++ % 2];
  std::copy_n(words, count, all[lane]);
  wait(w.barrier, arrive(w.barrier));
  return all;
}

template <class T> T shuffle_xor(T value, int mask) {
  uint32_t words[8];
  std::memcpy(words, &value, sizeof value);
  const auto& all = exchange(words, sizeof value / 4);
  std::memcpy(&value, all[thread() % 32 ^ mask], sizeof value);
  return value;
}

constexpr bool kClusters = true;
inline void sync_cluster() {
  Barrier& b = self().block->cluster->barrier;
  wait(b, arrive(b));
}

using Address = uintptr_t;
inline Address address(const void* shared) { return reinterpret_cast<Address>(shared); }
inline Address remote(Address local, int rank) {
  const Block& here = *self().block;
  if (rank >= int(here.cluster->blocks.size())) {
    give_up("an address in a block that the cluster does not have");
  }
  return local - address(here.shared) + address(here.cluster->blocks[rank]->shared);
}

// Eight bytes of shared memory, which hold the address of a Counter.
using Mbarrier = uint64_t;

inline Counter& counter(Address barrier) { return **reinterpret_cast<Counter**>(barrier); }

// Ends the current phase if everything has arrived. Is called after each arrival.
inline void counted(Counter& c) {
  if (c.bytes < -(1 << 20) || c.bytes >= 1 << 20) {
    give_up("more bytes than a barrier counts");
  }
  if (c.pending == 0 && c.bytes == 0) {
    ++c.phase;
    c.pending = c.arrivals;
    host.ready.insert(host.ready.end(), c.waiting.begin(), c.waiting.end());
    c.waiting.clear();
    host.polls = 0;
  }
}
inline void mbarrier_init(Mbarrier* barrier, int arrivals) {
  const Quiet quiet;
  self().block->counters.emplace_back(new Counter(arrivals));
  *reinterpret_cast<Counter**>(barrier) = self().block->counters.back().get();
}
inline void mbarrier_expect(Mbarrier* barrier, uint32_t bytes) {
  Counter& c = counter(address(barrier));
  dawdle();
  c.order[c.phase % 2].fetch_add(1, std::memory_order_acq_rel);
  const Quiet quiet;
  if (--c.pending < 0) {
    give_up("more arrivals than a phase has");
  }
  c.bytes += bytes;
  counted(c);
}
inline void mbarrier_wait(Mbarrier* barrier, uint32_t parity) {
  Counter& c = counter(address(barrier));
  {
    const Quiet quiet;
    dawdle();
    while (c.phase % 2 == parity) {
      c.waiting.push_back(&self());
      suspend();
    }
  }
  c.order[parity].load(std::memory_order_acquire);
}

inline void deliver(const Host::Store& store) {
  std::memcpy(store.to, store.words, store.counter != nullptr ? 16 : 8);
  if (store.counter != nullptr) {
    if (store.block->running == 0) {
      give_up("a store to a block that is gone");
    }
    store.counter->bytes -= 16;
    counted(*store.counter);
  }
}
inline void send(const Host::Store& store) {
#if defined(__SANITIZE_THREAD__)
  if (store.counter != nullptr) {
    *static_cast<uint4*>(store.to) = {store.words[0], store.words[1], store.words[2],
                                      store.words[3]};
    store.counter->order[store.counter->phase % 2].fetch_add(1, std::memory_order_acq_rel);
    const Quiet quiet;
    store.counter->bytes -= 16;
    counted(*store.counter);
  } else {
    uint64_t value;
    std::memcpy(&value, store.words, 8);
    __atomic_store_n(static_cast<uint64_t*>(store.to), value, __ATOMIC_RELAXED);
  }
#else
  for (const Host::Store& other : host.stores) {
    if (other.to == store.to) {
      give_up("two stores to one place are on their way");
    }
  }
  host.stores.push_back(store);
#endif
}

// Returns the block of the cluster in whose shared memory the bytes lie.
inline Block* owner(Address there, size_t bytes) {
  for (Block* block : self().block->cluster->blocks) {
    const Address begin = address(block->shared);
    if (there >= begin && there + bytes <= begin + block->bytes) {
      return block;
    }
  }
  give_up("a store outside of the shared memory of the cluster");
}
inline void store_async(bool active, Address to, const uint4& value, Address barrier) {
  if (!active) {
    return;
  }
  Block* const block = owner(to, 16);
  if (block != owner(barrier, 8) || self().block->cluster->blocks.size() < 2 || to % 16 != 0) {
    give_up("st.async: data and barrier lie in one block of a cluster of at least two, aligned");
  }
  dawdle();
  send({block,
        reinterpret_cast<void*>(to),
        {value.x, value.y, value.z, value.w},
        &counter(barrier)});
}

inline void store_numbered(uint64_t* to, uint32_t data, uint32_t number) {
  dawdle();
  send({nullptr, to, {data, number, 0, 0}, nullptr});
  const Quiet quiet;
  host.polls = 0;
}
inline uint64_t load_numbered(const uint64_t* from) {
  return __atomic_load_n(from, __ATOMIC_RELAXED);
}

inline void add_release(uint32_t* counter) {
  dawdle();
  __atomic_fetch_add(counter, 1, __ATOMIC_RELEASE);
  const Quiet quiet;
  host.polls = 0;
}
inline uint32_t load_acquire(const uint32_t* counter) {
  return __atomic_load_n(counter, __ATOMIC_ACQUIRE);
}
inline void pause() {
  const Quiet quiet;
  if (++host.polls > 1000000) {
    give_up("a flag is waited for that nobody sets");
  }
  host.ready.push_back(&self());
  suspend();
}

inline void copy_async(uint4* shared, const uint4* global) {
  self().groups.back().push_back({shared, global});
}
inline void copy_commit() { self().groups.emplace_back(); }
template <int N> void copy_wait() {
  auto& groups = self().groups;
  while (groups.size() > N + 1) {
    for (const Fiber::Copy& copy : groups.front()) {
      *copy.to = *copy.from;
    }
    groups.erase(groups.begin());
  }
}

} // namespace rnnfast::cuda::device

#include "shim_math.h"

namespace rnnfast::cuda::device {

// The functions that the host calls.

inline Machine machine() { return host.machine; }

struct Launch {
  int blocks, cluster;
  bool cooperative;
  size_t shared;
  void* stream;
};

inline void enter() {
  host.work();
  {
    const Quiet quiet;
    self().done = true;
    --self().block->running;
  }
  suspend();
}

// A seat takes 2 ms to make under ThreadSanitizer, so seats are used again. ThreadSanitizer cannot
// see a race between two fibers that had the same seat. So there are many seats, taken in turn.
constexpr int kSeats = 2048;

inline Seat take_seat() {
  static int made = 0;
  if (made >= kSeats && !host.seats.empty()) {
    const Seat seat = host.seats.front();
    host.seats.pop_front();
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(seat.stack, kStack);
#endif
    return seat;
  }
  ++made;
  Seat seat{mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)};
  if (seat.stack == MAP_FAILED) {
    give_up("no memory for a stack");
  }
#if defined(__SANITIZE_THREAD__)
  seat.tsan = __tsan_create_fiber(0);
#endif
  return seat;
}

inline std::unique_ptr<Fiber> new_fiber(Block* block, int thread) {
  std::unique_ptr<Fiber> f(new Fiber);
  f->block = block, f->thread = thread;
  f->seat = take_seat();
  f->place.tsan = f->seat.tsan;
  getcontext(&f->place.context);
  f->place.context.uc_stack.ss_sp = f->seat.stack, f->place.context.uc_stack.ss_size = kStack;
  f->place.context.uc_link = nullptr;
  makecontext(&f->place.context, enter, 0);
  return f;
}

inline void draw_late(int first, int count, int threads) {
  const int which = int(host.random() % 4); // none, a block, a warp, a thread
  host.delays = which > 0;
  host.late_block = first + int(host.random() % count);
  host.late_warp = which > 1 ? int(host.random() % (threads / 32)) : -1;
  host.late_thread = which > 2 ? int(host.random() % 32) : -1;
}
inline bool late(const Fiber& f) {
  return host.delays && f.block->index == host.late_block &&
         (host.late_warp < 0 || f.thread / 32 == host.late_warp) &&
         (host.late_thread < 0 || f.thread % 32 == host.late_thread);
}
// Takes a ready thread at random. A late thread is taken only after many tries.
inline void take_ready() {
  size_t at = host.random() % host.ready.size();
  for (int tries = 0; tries < 40 && late(*host.ready[at]); ++tries) {
    at = host.random() % host.ready.size();
  }
  std::swap(host.ready[at], host.ready.back());
  host.current = host.ready.back();
  host.ready.pop_back();
}

// Runs the blocks [first, first + count) together. Each `cluster` blocks form a cluster.
inline void run_together(int first, int count, int cluster, int threads, size_t shared) {
  std::vector<std::unique_ptr<Cluster_>> clusters;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Fiber>> fibers;
  for (int b = 0; b < count; ++b) {
    if (b % cluster == 0) {
      clusters.emplace_back(new Cluster_{Barrier(cluster * threads), {}});
    }
    uint4* const memory = static_cast<uint4*>(std::aligned_alloc(16, shared));
    std::memset(static_cast<void*>(memory), 0xff, shared);
    blocks.emplace_back(new Block{first + b, Barrier(threads), std::vector<Warp>(threads / 32),
                                  memory, clusters.back().get(), b % cluster, shared, threads});
    clusters.back()->blocks.push_back(blocks.back().get());
    for (int t = 0; t < threads; ++t) {
      fibers.push_back(new_fiber(blocks.back().get(), t));
      host.ready.push_back(fibers.back().get());
    }
  }
  size_t finished = 0;
  for (int64_t turn = 0; finished < fibers.size(); ++turn) {
    if (turn % 4096 == 0) {
      draw_late(first, count, threads);
    }
    if (!host.stores.empty() && (host.ready.empty() || host.random() % 4 == 0)) {
      std::swap(host.stores[host.random() % host.stores.size()], host.stores.back());
      const Host::Store store = host.stores.back();
      host.stores.pop_back();
      deliver(store);
    }
    if (host.ready.empty() && host.stores.empty()) {
      give_up("all threads wait for one another");
    }
    if (host.ready.empty()) {
      continue;
    }
    take_ready();
    switch_to(host.place, host.current->place);
    finished += host.current->done;
  }
  if (!host.stores.empty()) {
    give_up("a store that nobody waited for");
  }
  for (const auto& f : fibers) {
    host.seats.push_back(f->seat);
  }
  for (const auto& b : blocks) {
    std::free(b->shared);
  }
}

inline std::set<const void*> allowed;
template <class Kernel> void allow(const char*, Kernel* kernel, const Launch&) {
  allowed.insert(reinterpret_cast<const void*>(kernel));
}

template <class... A>
void launch(const char*, void (*kernel)(A...), int threads, const Launch& how, A... arguments) {
  // For ThreadSanitizer: the launch comes after all that went before, and before all that follows.
  static std::atomic<int64_t> begin{0}, end{0};
  {
    const Quiet quiet;
    host.place.begun = true;
#if defined(__SANITIZE_THREAD__)
    host.place.tsan = __tsan_get_current_fiber();
#endif
    if (how.shared > size_t(host.machine.shared)) {
      give_up("more shared memory than there is");
    }
    if ((how.shared > (48 << 10) || how.cluster > 8) &&
        allowed.count(reinterpret_cast<const void*>(kernel)) == 0) {
      give_up("a launch that the kernel has not been allowed");
    }
    if (how.cooperative && how.blocks > host.machine.processors) {
      give_up("a cooperative launch of more blocks than run at the same time");
    }
    ++host.launches;
    begin.fetch_add(1, std::memory_order_acq_rel);
    host.work = [=] {
      begin.load(std::memory_order_acquire);
      kernel(arguments...);
      end.fetch_add(1, std::memory_order_acq_rel);
    };
    const int together = how.cooperative ? how.blocks : how.cluster;
    std::vector<int> first;
    for (int b = 0; b < how.blocks; b += together) {
      first.push_back(b);
    }
    while (!first.empty()) {
      std::swap(first[host.random() % first.size()], first.back());
      run_together(first.back(), together, how.cluster, threads, how.shared);
      first.pop_back();
    }
  }
  end.load(std::memory_order_acquire);
}

template <class Kernel> int active_clusters(Kernel*, int, const Launch& how) {
  return host.machine.processors / how.cluster;
}

} // namespace rnnfast::cuda::device
