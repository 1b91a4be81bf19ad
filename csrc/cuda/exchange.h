// The exchanges: how the members of a group send one another the state. State i is the state that
// step i multiplies. It is in shared memory while step i reads it. Each exchange has these
// functions:
//
//   state(i)    returns where state i is for the product
//   read(i)     all threads call it when no thread of the block reads state i any more
//   publish     sends cell j of this thread in state i + 1, as `words`, to all members
//   wait(i)     waits until state i + 1 is where state(i + 1) says
//   finish      is called at the end of the block, after the last wait
#pragma once

#include "product.h"

namespace rnnfast::cuda {

// One unit or two adjacent units as the next product reads them, in 4 or 8 bytes.
template <class P> constexpr int kWordCount = P::kUnits * int(sizeof(typename P::E::Stored)) / 4;
template <class P> struct alignas(4 * kWordCount<P>) Words {
  static constexpr int kCount = kWordCount<P>;
  uint32_t word[kCount];
};

RNNFAST_DEVICE int parity(int i) { return i & 1; }

// The common part of the exchanges: the state in shared memory, and the place of this thread's
// cells.
template <class P, int kStates> class State {
  using Stored = typename P::E::Stored;

public:
  static constexpr int kStateWords = P::kRows * P::kStride; // of 16 bytes

protected:
  RNNFAST_DEVICE State(const Call& call, const Place& place, int rows, const P& product,
                       uint4* memory)
      : state_(memory), rows_(rows), H_(call.geometry.H),
        unit_(place.member * call.geometry.units + product.unit()) {
    const Geometry& g = call.geometry;
#pragma unroll 1
    for (int i = device::thread(); i < kStateWords; i += g.threads) {
      const int row = i / P::kStride;
      const uint4 value = initial_word<typename P::E>(
          call, place.direction, g.batch_row(row, place.group), i % P::kStride);
#pragma unroll
      for (int s = 0; s < kStates; ++s) {
        state_[s * kStateWords + i] = value;
      }
    }
  }

  // Returns whether the group has the row of cell j, and H has one of the `units` adjacent units.
  RNNFAST_DEVICE bool exists(const P& product, int j, int units) const {
    return product.row(j) < rows_ && unit_ / units * units < H_;
  }

  uint4* const state_;
  const int rows_, H_;
  const int unit_; // of the first cell
};

// A group is one block. Its shared memory holds two states, and the barrier of the block orders
// them.
template <class P> class Block : State<P, 2> {
  using Base = State<P, 2>;
  using Base::kStateWords, Base::state_;

public:
  static constexpr Kernel kKernel = Kernel::kCluster;
  static constexpr bool kAvailable = true;
  static constexpr bool kTogether = false;  // a group has more than one member
  static constexpr bool kReadApart = false; // `read` needs a barrier of the block before it
  static constexpr int kSharedWords = 2 * kStateWords, kGlobalBytes = 0;

  RNNFAST_DEVICE Block(const Call& call, const Place& place, int rows, const P& product,
                       uint4* memory)
      : Base(call, place, rows, product, memory),
        cell_(reinterpret_cast<char*>(memory) + product.row(0) * P::kStride * 16 +
              product.unit() * sizeof(typename P::E::Stored)) {
    device::sync_block();
  }
  RNNFAST_DEVICE const uint4* state(int i) const { return state_ + parity(i) * kStateWords; }
  RNNFAST_DEVICE void read(int) {}
  RNNFAST_DEVICE void publish(int i, int j, const P& product, const Words<P>& words) {
    if (product.owns() && this->exists(product, j, P::kUnits)) {
      char* const to = cell_ + (product.row(j) - product.row(0)) * P::kStride * 16 +
                       parity(i + 1) * kStateWords * 16;
      *reinterpret_cast<Words<P>*>(to) = words;
    }
  }
  RNNFAST_DEVICE void wait(int) { device::sync_block(); }
  RNNFAST_DEVICE void finish() {}

private:
  char* const cell_;
};

// The members of a group are a cluster. Each member stores its units in the shared memory of all
// members. An mbarrier for each of the two states counts the bytes that arrive, and there is no
// other synchronisation.
//
// No state is overwritten early: a member stores state i + 1 over state i - 1 after it has received
// state i from all members. Each of these sent state i after all its threads had read state i - 1,
// because there is a barrier of the block between the reads and the stores.
//
// No thread misses a phase of an mbarrier: a phase cannot end before thread 0 expects its bytes.
// Thread 0 does this after all threads of the block have seen the end of the phase before.
template <class P> class Cluster : State<P, 2> {
  using Base = State<P, 2>;
  using Base::kStateWords, Base::state_;
  static constexpr int kMembers = 16;
  static constexpr int kStored = int(sizeof(typename P::E::Stored)), kTogetherUnits = 16 / kStored;
  static constexpr int kSends = (kMembers + P::kSharers - 1) / P::kSharers;

public:
  static constexpr Kernel kKernel = Kernel::kCluster;
  static constexpr bool kAvailable = device::kClusters;
  static constexpr bool kTogether = true, kReadApart = true;
  static constexpr int kSharedWords = 2 * kStateWords + 1, kGlobalBytes = 0;

  RNNFAST_DEVICE Cluster(const Call& call, const Place& place, int rows, const P& product,
                         uint4* memory)
      : Base(call, place, rows, product, memory),
        barriers_(reinterpret_cast<device::Mbarrier*>(memory + 2 * kStateWords)),
        bytes_(rows * ((call.geometry.H + kTogetherUnits - 1) / kTogetherUnits) * 16) {
    if (device::thread() == 0) {
      device::mbarrier_init(&barriers_[0], 1);
      device::mbarrier_init(&barriers_[1], 1);
      device::mbarrier_expect(&barriers_[1], bytes_);
    }
    device::sync_cluster(); // other members may store here only after this
    const int unit = this->unit_ / kTogetherUnits * kTogetherUnits;
    const device::Address mine =
        device::address(memory + product.row(0) * P::kStride) + unit * kStored;
#pragma unroll
    for (int s = 0; s < kSends; ++s) {
      const int member = product.sharer() + s * P::kSharers;
      sends_[s] = member < call.geometry.members;
      const int there = sends_[s] ? member : 0;
      cell_[s] = device::remote(mine, there);
      barrier_[s] = device::remote(device::address(barriers_), there);
    }
  }
  RNNFAST_DEVICE const uint4* state(int i) const { return state_ + parity(i) * kStateWords; }
  RNNFAST_DEVICE void read(int i) {
    if (device::thread() == 0) {
      device::mbarrier_expect(&barriers_[parity(i)], bytes_);
    }
  }
  RNNFAST_DEVICE void publish(int i, int j, const P& product, const Words<P>& words) {
    const uint4 all = gather(words);
    const bool exists = this->exists(product, j, kTogetherUnits);
    const int offset =
        (product.row(j) - product.row(0)) * P::kStride * 16 + parity(i + 1) * kStateWords * 16;
#pragma unroll
    for (int s = 0; s < kSends; ++s) {
      device::store_async(exists && sends_[s], cell_[s] + offset, all,
                          barrier_[s] + parity(i + 1) * int(sizeof(device::Mbarrier)));
    }
  }
  RNNFAST_DEVICE void wait(int i) {
    device::mbarrier_wait(&barriers_[parity(i + 1)], parity(i >> 1));
    device::sync_warp();
  }
  // A block must not end while other blocks store to it or count at its barriers. After the last
  // wait no store is left, but a count may be.
  RNNFAST_DEVICE void finish() { device::sync_cluster(); }

private:
  // Returns the 16 bytes that this lane and its neighbours have together. All of them get the
  // result.
  static RNNFAST_DEVICE uint4 gather(const Words<P>& mine) {
    const int lane = device::thread() % 32;
    const bool odd = (lane & P::kLow) != 0, upper = (lane & P::kHigh) != 0;
    if constexpr (Words<P>::kCount == 1) {
      const uint32_t own = mine.word[0], other = device::shuffle_xor(own, P::kLow);
      const uint32_t a = odd ? other : own, b = odd ? own : other;
      const uint32_t c = device::shuffle_xor(a, P::kHigh), d = device::shuffle_xor(b, P::kHigh);
      return upper ? uint4{c, d, a, b} : uint4{a, b, c, d};
    } else {
      const uint32_t a = mine.word[0], b = mine.word[1];
      const uint32_t c = device::shuffle_xor(a, P::kLow), d = device::shuffle_xor(b, P::kLow);
      return odd ? uint4{c, d, a, b} : uint4{a, b, c, d};
    }
  }

  device::Mbarrier* const barriers_;
  const int bytes_;
  device::Address cell_[kSends], barrier_[kSends];
  bool sends_[kSends];
};

// The exchange goes through L2, and a group has one row. Every 4 bytes of the state carry the
// number of their step. Every member polls until all have the number that it wants, so that there
// is no flag and no fence. The states alternate: a member overwrites state i - 1 only after it has
// received state i, which the other members sent after they had received state i - 1.
template <class P> class Numbered : State<P, 1> {
  using Base = State<P, 1>;
  using Base::kStateWords, Base::state_;
  static constexpr int kRowWords = P::kBlocks * 16; // of 4 bytes
  static constexpr int kPolls = (kRowWords + kThreads - 1) / kThreads;

public:
  static constexpr Kernel kKernel = Kernel::kGrid;
  static constexpr bool kAvailable = true;
  static constexpr bool kTogether = true, kReadApart = true;
  static constexpr int kSharedWords = kStateWords;
  static constexpr int kGlobalBytes = 2 * kRowWords * 8; // for a group

  RNNFAST_DEVICE Numbered(const Call& call, const Place& place, int rows, const P& product,
                          uint4* memory)
      : Base(call, place, rows, product, memory),
        states_(reinterpret_cast<uint64_t*>(call.states + place.team * call.state_words)),
        words_((call.geometry.H * int(sizeof(typename P::E::Stored)) + 3) / 4) {
    device::sync_block();
  }
  RNNFAST_DEVICE const uint4* state(int) const { return state_; }
  RNNFAST_DEVICE void read(int) {}
  RNNFAST_DEVICE void publish(int i, int j, const P& product, const Words<P>& words) {
    uint64_t* const to =
        states_ + parity(i + 1) * kRowWords + this->unit_ * int(sizeof(typename P::E::Stored)) / 4;
    if (product.owns() && this->exists(product, j, P::kUnits)) {
#pragma unroll
      for (int w = 0; w < Words<P>::kCount; ++w) {
        device::store_numbered(to + w, words.word[w], i + 1);
      }
    }
  }
  RNNFAST_DEVICE void wait(int i) {
    const uint64_t* const from = states_ + parity(i + 1) * kRowWords + device::thread();
    uint64_t found[kPolls];
    bool there;
    do {
      there = true;
#pragma unroll
      for (int p = 0; p < kPolls; ++p) {
        // Beyond the last word there is nothing to wait for.
        const bool wanted = device::thread() + p * kThreads < words_;
        found[p] = wanted ? device::load_numbered(from + p * kThreads) : uint64_t(i + 1) << 32;
      }
#pragma unroll
      for (int p = 0; p < kPolls; ++p) {
        there = there && uint32_t(found[p] >> 32) == uint32_t(i + 1);
      }
      if (!there) {
        device::pause();
      }
    } while (!there);
    uint32_t* const to = reinterpret_cast<uint32_t*>(state_) + device::thread();
#pragma unroll
    for (int p = 0; p < kPolls; ++p) {
      if (device::thread() + p * kThreads < kRowWords) {
        to[p * kThreads] = uint32_t(found[p]);
      }
    }
    device::sync_block();
  }
  RNNFAST_DEVICE void finish() {}

private:
  uint64_t* const states_;
  const int words_; // the number that all members send
};

// The exchange goes through L2. A member stores its part and then increments the counter of the
// group. One of its threads polls the counter until all members have done so. Then the member
// copies the whole state. The states alternate as in Numbered.
template <class P> class Counted : State<P, 1> {
  using Base = State<P, 1>;
  using Base::kStateWords, Base::state_;
  static constexpr int kRowWords = P::kBlocks * 4; // of 16 bytes
  static_assert(kRowWords % kThreads == 0);

public:
  static constexpr Kernel kKernel = Kernel::kGrid;
  static constexpr bool kAvailable = true;
  static constexpr bool kTogether = true, kReadApart = false;
  static constexpr int kSharedWords = kStateWords;
  static constexpr int kGlobalBytes = 2 * P::kRows * kRowWords * 16;

  RNNFAST_DEVICE Counted(const Call& call, const Place& place, int rows, const P& product,
                         uint4* memory)
      : Base(call, place, rows, product, memory),
        states_(call.states + place.team * call.state_words), counter_(call.counters + place.team),
        members_(call.geometry.members) {
    device::sync_block();
  }
  RNNFAST_DEVICE const uint4* state(int) const { return state_; }
  RNNFAST_DEVICE void read(int) {}
  RNNFAST_DEVICE void publish(int i, int j, const P& product, const Words<P>& words) {
    if (product.owns() && this->exists(product, j, P::kUnits)) {
      char* const to = reinterpret_cast<char*>(other(i) + product.row(j) * kRowWords) +
                       this->unit_ * int(sizeof(typename P::E::Stored));
      *reinterpret_cast<Words<P>*>(to) = words;
    }
  }
  RNNFAST_DEVICE void wait(int i) {
    device::sync_block();
    if (device::thread() == 0) {
      device::add_release(counter_);
      // A step counts at most 132 members, so the difference stays right if the counter overflows.
      const uint32_t all = uint32_t(i + 1) * members_;
      while (int32_t(device::load_acquire(counter_) - all) < 0) {
        device::pause();
      }
    }
    device::sync_block();
    const uint4* const from = other(i) + device::thread();
    uint4* const to = state_ + device::thread();
#pragma unroll
    for (int row = 0; row < P::kRows; ++row) {
#pragma unroll
      for (int w = 0; w < kRowWords; w += kThreads) {
        if (row < this->rows_) {
          device::copy_async(to + row * P::kStride + w, from + row * kRowWords + w);
        }
      }
    }
    device::copy_commit();
    device::copy_wait<0>();
    device::sync_block();
  }
  RNNFAST_DEVICE void finish() {}

private:
  RNNFAST_DEVICE uint4* other(int i) const {
    return states_ + parity(i + 1) * (P::kRows * kRowWords);
  }
  uint4* const states_;
  uint32_t* const counter_;
  const int members_;
};

} // namespace rnnfast::cuda
