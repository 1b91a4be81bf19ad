// Stands in for a GPU, so that csrc/cuda compiles with a C++ compiler and runs on the host: what
// device.h offers, with a fiber for every CUDA thread. One system thread runs them all, in an order
// drawn at random from a seed, switching wherever a thread waits; ThreadSanitizer is told that they
// are threads, so it reports every pair of accesses that no barrier and no release and acquire puts
// in an order, whether or not this schedule got them wrong. A wait that can never end aborts.
//
// Stricter than the machine where that is possible: shared memory begins as NaN in a block of its
// own size, asynchronous copies happen at the wait and not before, and the blocks of a launch that
// promises them no company run one after another, in random order. In most launches some thread,
// warp or block, drawn anew now and then, hardly runs while others can; and what is stored without
// a promise of when it arrives, by store_async and store_numbered, arrives late and in any order.
// So a wait that is missing is found by the results. (Not under ThreadSanitizer, to which a store
// that is late would be another thread's; it finds the missing wait itself.)
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

#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define RNNFAST_DEVICE inline
#define RNNFAST_BOTH inline

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
using std::max;
using std::min;

namespace rnnfast::cuda::device {

// Where a fiber or the scheduler goes on. swapcontext asks the system for the signal mask, twice;
// so it only begins a fiber, and ThreadSanitizer, which follows jumps in its own way, does without.
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

// Everyone waits for everyone. `order` is for ThreadSanitizer: one for even and one for odd phases,
// so that nobody seems to come after what another did after this barrier.
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
  uint32_t words[2][32][8]; // of two collective calls, so that one barrier each is enough
};

// Counts arrivals and bytes; waiting is by the parity of the phase, as on the machine.
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

// What a fiber needs of the system, used again by the next launch.
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
  std::deque<Seat> seats; // free ones; whoever left first is first

  // A store on its way, of 16 bytes and to be counted, or of 8.
  struct Store {
    Block* block; // or nullptr: to device memory
    void* to;
    uint32_t words[4];
    Counter* counter;
  };
  std::vector<Store> stores;

  // Threads that are to be late: of this block, warp and thread, or of any where that is -1.
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

// What the shim keeps for itself is shared by all fibers, but by one system thread alone.
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

// Back to the scheduler, which calls again what is in `ready`.
inline void suspend() { switch_to(self().place, host.place); }

// Lets others go first, now and then.
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

inline int thread() { return self().thread; }
inline int block() { return self().block->index; }
inline int warp() { return thread() / 32; }
inline uint4* shared_memory() { return self().block->shared; }
inline void sync_block() {
  Barrier& b = self().block->barrier;
  wait(b, arrive(b));
}

inline void sync_warp() {} // orders less than it might

// Gives all lanes of the warp what each of them brings.
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

// Eight bytes of shared memory, which name a Counter.
using Mbarrier = uint64_t;

inline Counter& counter(Address barrier) { return **reinterpret_cast<Counter**>(barrier); }

// After something was counted in the current phase.
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

// The block of the cluster in whose shared memory this is.
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

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline double double_of(uint32_t low, uint32_t high) {
  const uint64_t bits = uint64_t(high) << 32 | low;
  double x;
  std::memcpy(&x, &bits, 8);
  return x;
}
inline uint16_t to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  return std::isnan(x) ? 0x7fff : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float from_bfloat16(uint16_t x) { return float_of(uint32_t(x) << 16); }
inline uint16_t to_float16(float x) {
  const _Float16 half = static_cast<_Float16>(x);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
// From a table, for the compiler's own conversion is a call where the processor has none.
inline float from_float16(uint16_t x) {
  static const std::vector<float> table = [] {
    std::vector<float> all(1 << 16);
    for (size_t i = 0; i < all.size(); ++i) {
      const uint16_t bits = uint16_t(i);
      _Float16 half;
      std::memcpy(&half, &bits, 2);
      all[i] = half;
    }
    return all;
  }();
  return table[x];
}
// Ten bits of mantissa are left; ties away from zero.
inline float to_tf32(float x) {
  return std::isfinite(x) ? float_of((bits_of(x) + 0x1000) & ~uint32_t(0x1fff)) : x;
}
inline float tanh_roughly(float x) { return std::tanh(x); }
inline float relu(float x) { return x < 0 ? 0 : x; }
inline float select(bool which, float yes, float no) { return which ? yes : no; }
template <class T> void keep(T*&) {}
inline uint32_t to_bfloat16s(float first, float second) {
  return to_bfloat16(first) | uint32_t(to_bfloat16(second)) << 16;
}
inline uint32_t to_float16s(float first, float second) {
  return to_float16(first) | uint32_t(to_float16(second)) << 16;
}

// The matrix instruction from its definition: whole A, B from the words of all lanes, in the layout
// of the PTX manual; then this lane's four elements of the product.
template <int K, class Decode> // decode(word, i): its i-th element, of 16 / K... elements
void mma(float (&c)[4], const uint32_t (&words)[6], const Decode& decode) {
  const auto& all = exchange(words, 6);
  constexpr int kEach = K == 16 ? 2 : 1; // elements of a word
  const int lane = thread() % 32, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    float sum = c[i];
    for (int k = 0; k < K; ++k) {
      const int upper = k / (4 * kEach), holder = k / kEach % 4, element = k % kEach;
      const uint32_t a = all[row % 8 * 4 + holder][row / 8 + 2 * upper];
      const uint32_t b = all[column * 4 + holder][4 + upper];
      sum += decode(a, element) * decode(b, element);
    }
    c[i] = sum;
  }
}
inline void mma_bfloat16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                         uint32_t b0, uint32_t b1) {
  mma<16>(c, {a0, a1, a2, a3, b0, b1},
          [](uint32_t word, int i) { return from_bfloat16(uint16_t(word >> 16 * i)); });
}
inline void mma_float16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                        uint32_t b0, uint32_t b1) {
  mma<16>(c, {a0, a1, a2, a3, b0, b1},
          [](uint32_t word, int i) { return from_float16(uint16_t(word >> 16 * i)); });
}
inline void mma_tf32(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                     uint32_t b1) {
  mma<8>(c, {a0, a1, a2, a3, b0, b1}, [](uint32_t word, int) { return float_of(word & ~0x1fffu); });
}

// The host's side.

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

// Seats are dear: 2 ms each under ThreadSanitizer. To it a thread follows whoever had its seat
// before, so that it cannot see them race; hence many seats, taken in turn.
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
// A thread at random; a late one only after a few tries.
inline void take_ready() {
  size_t at = host.random() % host.ready.size();
  for (int tries = 0; tries < 40 && late(*host.ready[at]); ++tries) {
    at = host.random() % host.ready.size();
  }
  std::swap(host.ready[at], host.ready.back());
  host.current = host.ready.back();
  host.ready.pop_back();
}

// Runs the blocks [first, first + count) together, `cluster` of them a cluster.
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
  static std::atomic<int64_t> begin{0}, end{0}; // all that went before; all threads of this launch
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
