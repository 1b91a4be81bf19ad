// The kernels. One loop over time, written once, for every dtype, both directions of time and the
// three ways of exchanging the state: a step's product by all warps, their partial sums through
// shared memory, the elementwise function, the new state handed to the other members of the group.
#pragma once

#include "element.h"
#include "geometry.h"
#include "recurrence.h"

namespace rnnfast::cuda {

// One launch. The workspace holds for each direction the packed weights, and for each group two
// states, which alternate, and its flags.
struct Call {
  Geometry geometry;
  int T, B;
  const int64_t* starts;
  bool backward, relu;
  int first, last; // computed steps [first, last)
  Direction direction[2];
  uint4* weights;  // [directions][unit_tiles][blocks][low, high][32]
  uint4* states;   // [directions * groups][2][padded_rows][global_stride]; not of kCluster
  uint32_t* flags; // [directions * groups][members]: how many steps are done; of kGrid

  // Back through time runs against the direction of the forward.
  RNNFAST_BOTH Steps steps(int direction_) const {
    return {T, B, starts, direction[direction_].reverse != backward};
  }
};

// Which part of the work a block has.
struct Place {
  int direction, group, team, member; // team: of all directions' groups

  RNNFAST_BOTH Place(const Geometry& g, int block)
      : direction(block / g.members / g.groups), group(block / g.members % g.groups),
        team(block / g.members), member(block % g.members) {}
};

// An element of the state before the first step: h0, or nothing where gradients begin.
template <class E>
RNNFAST_DEVICE typename E::Stored initial(const Call& call, int direction, int64_t row, int k) {
  using Stored = typename E::Stored;
  const Stored* const begin = static_cast<const Stored*>(call.direction[direction].begin);
  const bool given = !call.backward && begin != nullptr && row < call.B && k < call.geometry.H;
  return given ? E::operand(E::load(begin[row * call.geometry.H + k])) : Stored(0);
}

// 16 bytes of it.
template <class E>
RNNFAST_DEVICE uint4 initial_word(const Call& call, int direction, int64_t row, int word) {
  constexpr int kElements = kBlock<E> / 4;
  union {
    typename E::Stored elements[kElements];
    uint4 whole;
  } bits;
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    bits.elements[e] = initial<E>(call, direction, row, word * kElements + e);
  }
  return bits.whole;
}

// Before the others: W_hh, transposed for the backward, in the order in which warps read it, zeros
// up to whole tiles and blocks; the first states and the flags, where they are in device memory.
// Any number of blocks.
template <class E>
__global__ void __launch_bounds__(kThreads) prepare(const __grid_constant__ Call call, int grid) {
  using Stored = typename E::Stored;
  constexpr int kElements = kBlock<E> / 4;
  const Geometry& g = call.geometry;
  const int64_t stride = int64_t(grid) * kThreads;
  const int64_t begin = int64_t(device::block()) * kThreads + device::thread();
  for (int64_t i = begin; i < g.weight_words() * g.directions; i += stride) {
    const int direction = int(i / g.weight_words());
    const int64_t word = i % g.weight_words();
    const int lane = int(word % 32), half = int(word / 32 % 2);
    const int64_t part = word / 64, tile = part / g.blocks;
    const int64_t unit = tile * 16 + lane / 4 + half * 8;
    const int k0 = int(part % g.blocks) * kBlock<E> + lane % 4 * kElements;
    const Stored* const w = static_cast<const Stored*>(call.direction[direction].w_hh);
    union {
      Stored elements[kElements];
      uint4 whole;
    } bits;
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const int64_t k = k0 + e;
      const bool inside = unit < g.H && k < g.H;
      bits.elements[e] =
          inside ? E::operand(E::load(w[call.backward ? k * g.H + unit : unit * g.H + k]))
                 : Stored(0);
    }
    call.weights[i] = bits.whole;
  }
  if (call.states != nullptr) {
    const int64_t team_words = 2 * g.state_words();
    for (int64_t i = begin; i < team_words * g.groups * g.directions; i += stride) {
      const int team = int(i / team_words);
      const int64_t in_state = i % g.state_words();
      const int row = int(in_state / g.global_stride());
      call.states[i] = initial_word<E>(call, team / g.groups, g.batch_row(row, team % g.groups),
                                       int(in_state % g.global_stride()));
    }
  }
  if (call.flags != nullptr) {
    for (int64_t i = begin; i < int64_t(g.members) * g.groups * g.directions; i += stride) {
      call.flags[i] = 0;
    }
  }
}

// The exchanges. State i % 2 is read in step i and the other written. `rows`: where the rows of a
// chunk begin for the product, after `request` has been called for it. `publish`: two units of a
// row to all members. `arrive` and `wait`: what all members published before the one is what all
// see after the other, and nobody reads any longer what the next step overwrites.

// Every member has the whole state of its group in shared memory, and writes to all copies.
template <class E> class Cluster {
public:
  static constexpr bool kPersistent = true;

  RNNFAST_DEVICE Cluster(const Call& call, const Place& place, uint4*& memory)
      : g_(call.geometry), state_(memory) {
    const int words = g_.padded_rows * g_.shared_stride();
    memory += 2 * words;
#pragma unroll 1
    for (int row = device::warp(); row < g_.padded_rows; row += kWarps) {
#pragma unroll 1
      for (int word = device::thread() % 32; word < g_.global_stride(); word += 32) {
        const uint4 value =
            initial_word<E>(call, place.direction, g_.batch_row(row, place.group), word);
        state_[row * g_.shared_stride() + word] = value;
        state_[words + row * g_.shared_stride() + word] = value;
      }
    }
    arrive();
    wait(); // before this no other member may write here
  }
  RNNFAST_DEVICE void request(int, int, int) {}
  RNNFAST_DEVICE const uint4* rows(int i, int first, bool) {
    return state(i % 2) + first * stride();
  }
  RNNFAST_DEVICE int stride() const { return g_.shared_stride(); }
  RNNFAST_DEVICE void publish(int i, int row, int unit, const Pair<E>& pair) {
    Pair<E>* const mine = reinterpret_cast<Pair<E>*>(state((i + 1) % 2) + row * stride());
    if (!together()) {
      mine[unit / 2] = pair;
      return;
    }
#pragma unroll 2
    for (int member = 0; member < g_.members; ++member) {
      device::store_remote(mine + unit / 2, member, pair);
    }
  }
  RNNFAST_DEVICE void arrive() {
    if (together()) {
      device::cluster_arrive();
    }
  }
  RNNFAST_DEVICE void wait() {
    if (together()) {
      device::cluster_wait();
    } else {
      device::sync_block();
    }
  }

private:
  RNNFAST_DEVICE bool together() const { return device::kClusters && g_.members > 1; }
  RNNFAST_DEVICE uint4* state(int parity) const {
    return state_ + parity * g_.padded_rows * g_.shared_stride();
  }
  const Geometry& g_;
  uint4* const state_;
};

// The state is in device memory, in L2 that is; members copy a chunk at a time to shared memory,
// one ahead of the one they work on.
template <class E> class Grid {
public:
  static constexpr bool kPersistent = true;

  RNNFAST_DEVICE Grid(const Call& call, const Place& place, uint4*& memory)
      : g_(call.geometry), states_(call.states + place.team * 2 * g_.state_words()),
        flags_(call.flags + place.team * g_.members), member_(place.member), staged_(memory) {
    memory += 2 * stage_words();
  }
  RNNFAST_DEVICE void request(int i, int first, int rows) {
    const uint4* const from = states_ + i % 2 * g_.state_words();
    uint4* const to = stage(first);
#pragma unroll 1
    for (int row = device::warp(); row < rows; row += kWarps) {
#pragma unroll 1
      for (int word = device::thread() % 32; word < g_.global_stride(); word += 32) {
        device::copy_async(to + row * stride() + word,
                           from + int64_t(first + row) * g_.global_stride() + word);
      }
    }
    device::copy_commit();
  }
  // `more`: the chunk after it has been requested too.
  RNNFAST_DEVICE const uint4* rows(int, int first, bool more) {
    if (more) {
      device::copy_wait<1>();
    } else {
      device::copy_wait<0>();
    }
    device::sync_block();
    return stage(first);
  }
  RNNFAST_DEVICE int stride() const { return g_.shared_stride(); }
  RNNFAST_DEVICE void publish(int i, int row, int unit, const Pair<E>& pair) {
    uint4* const to = states_ + (i + 1) % 2 * g_.state_words() + int64_t(row) * g_.global_stride();
    reinterpret_cast<Pair<E>*>(to)[unit / 2] = pair;
  }
  RNNFAST_DEVICE void arrive() {
    ++done_;
    device::sync_block();
    if (device::thread() == 0) {
      device::store_release(flags_ + member_, done_);
    }
  }
  RNNFAST_DEVICE void wait() {
    for (int member = device::thread(); member < g_.members; member += kThreads) {
      while (device::load_acquire(flags_ + member) < done_) { // never twice around in one launch
        device::pause();
      }
    }
    device::sync_block();
  }

private:
  RNNFAST_DEVICE int stage_words() const {
    return padded(g_.chunk, kColumns<E>) * g_.shared_stride();
  }
  RNNFAST_DEVICE uint4* stage(int first) const {
    return staged_ + first / g_.chunk % 2 * stage_words();
  }
  const Geometry& g_;
  uint4* const states_;
  uint32_t* const flags_;
  const int member_;
  uint4* const staged_;
  uint32_t done_ = 0;
};

// One step a launch: the end of a launch is the barrier, and everything is read where it lies.
template <class E> class Launches {
public:
  static constexpr bool kPersistent = false;

  RNNFAST_DEVICE Launches(const Call& call, const Place& place, uint4*&)
      : g_(call.geometry), states_(call.states + place.team * 2 * g_.state_words()) {}
  RNNFAST_DEVICE void request(int, int, int) {}
  RNNFAST_DEVICE const uint4* rows(int i, int first, bool) {
    return states_ + i % 2 * g_.state_words() + int64_t(first) * stride();
  }
  RNNFAST_DEVICE int stride() const { return g_.global_stride(); }
  RNNFAST_DEVICE void publish(int i, int row, int unit, const Pair<E>& pair) {
    uint4* const to = states_ + (i + 1) % 2 * g_.state_words() + int64_t(row) * stride();
    reinterpret_cast<Pair<E>*>(to)[unit / 2] = pair;
  }
  RNNFAST_DEVICE void arrive() {}
  RNNFAST_DEVICE void wait() {}

private:
  const Geometry& g_;
  uint4* const states_;
};

// A warp's part of W_hh, 16 * MT units by `blocks` blocks of k: in registers, what does not fit
// there in shared memory; or all of it where `prepare` put it.
template <class E, int MT, bool kPersistent> class WarpWeights {
public:
  RNNFAST_DEVICE WarpWeights(const Geometry& g, const uint4* packed, int tile, int first, int lane,
                             uint4* memory)
      : blocks_(max(0, min(g.warp_blocks, g.blocks - first))),
        tile_stride_(g.blocks * (kPartBytes / 16)),
        packed_(packed + int64_t(tile) * tile_stride_ + first * (kPartBytes / 16) + lane),
        rest_(memory + lane) {
    if constexpr (kPersistent) {
#pragma unroll
      for (int k = 0; k < kRegisterBlocks; ++k) {
        if (k < blocks_) {
          load(packed_, tile_stride_, k, held_[k]);
        }
      }
#pragma unroll 1
      for (int k = kRegisterBlocks; k < blocks_; ++k) {
        Weights w[MT];
        load(packed_, tile_stride_, k, w);
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          rest_[((k - kRegisterBlocks) * MT + m) * 64] = w[m].low;
          rest_[((k - kRegisterBlocks) * MT + m) * 64 + 32] = w[m].high;
        }
      }
    }
  }

  // The product with N * kColumns rows of the state, to `to`. `h`: the first of them, at the warp's
  // first block.
  template <int N>
  RNNFAST_DEVICE void multiply(const uint4* h, int stride, typename E::Sum* to, int sum_stride,
                               int lane) const {
    Sums<E, MT, N> sums;
    h += (E::kMatrix ? lane / 4 * stride : 0) + lane % 4;
    const int step = kColumns<E> * stride;
    if constexpr (kPersistent) {
#pragma unroll
      for (int k = 0; k < kRegisterBlocks; ++k) {
        if (k >= blocks_) {
          break;
        }
        uint4 rows[N];
        read(h, step, k, rows);
        sums.add(held_[k], rows);
      }
#pragma unroll 1
      for (int k = kRegisterBlocks; k < blocks_; ++k) {
        Weights w[MT];
        load(rest_, 64, (k - kRegisterBlocks) * MT, w);
        uint4 rows[N];
        read(h, step, k, rows);
        sums.add(w, rows);
      }
    } else {
#pragma unroll 4
      for (int k = 0; k < blocks_; ++k) {
        Weights w[MT];
        load(packed_, tile_stride_, k, w);
        uint4 rows[N];
        read(h, step, k, rows);
        sums.add(w, rows);
      }
    }
    sums.store(to, sum_stride, lane);
  }

private:
  static constexpr int kRegisterBlocks = kRegisterParts / MT;

  static RNNFAST_DEVICE void load(const uint4* from, int tile_stride, int part, Weights (&w)[MT]) {
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      w[m].low = from[m * tile_stride + part * 64];
      w[m].high = from[m * tile_stride + part * 64 + 32];
    }
  }
  template <int N>
  static RNNFAST_DEVICE void read(const uint4* h, int step, int block, uint4 (&rows)[N]) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      rows[n] = h[n * step + block * 4];
    }
  }

  const int blocks_, tile_stride_;
  const uint4* const packed_;
  uint4* const rest_;
  Weights held_[kPersistent ? kRegisterBlocks : 1][MT];
};

// What a thread reads of the caller's tensors for the pairs that it will finish next. It is asked
// for a step ahead, so that nobody waits for device memory.
//   Registers are scarce: of two bytes each, dy and h share the word that pre has in the forward.
template <class E> class Inputs {
  using Stored = typename E::Stored;
  using Sum = typename E::Sum;
  static constexpr bool kShared = sizeof(Stored) == 2;

public:
  RNNFAST_DEVICE void clear(int p, int e) { set(p, e, Stored(0), Stored(0)); }
  RNNFAST_DEVICE void set(int p, int e, Sum pre) { first_[p][e] = pre; }
  RNNFAST_DEVICE void set(int p, int e, Stored dy, Stored h) {
    if constexpr (kShared) {
      first_[p][e] = device::float_of(uint32_t(h) << 16 | dy);
    } else {
      first_[p][e] = dy;
      second_[p][e] = h;
    }
  }
  RNNFAST_DEVICE Sum pre(int p, int e) const { return first_[p][e]; }
  RNNFAST_DEVICE Sum dy(int p, int e) const {
    if constexpr (kShared) {
      return E::load(Stored(device::bits_of(first_[p][e])));
    } else {
      return first_[p][e];
    }
  }
  RNNFAST_DEVICE Sum h(int p, int e) const {
    if constexpr (kShared) {
      return E::load(Stored(device::bits_of(first_[p][e]) >> 16));
    } else {
      return second_[p][e];
    }
  }

private:
  Sum first_[kPairs][2], second_[kShared ? 1 : kPairs][2];
};

// Read at once.
template <class Sum> struct alignas(2 * sizeof(Sum)) Two {
  Sum first, second;
};

template <class E, template <class> class Exchange, int MT>
__global__ void __launch_bounds__(kThreads, 1) recur(const __grid_constant__ Call call) {
  using Stored = typename E::Stored;
  using Sum = typename E::Sum;
  const Geometry& g = call.geometry;
  const Place place(g, device::block());
  const Direction& d = call.direction[place.direction];
  const Steps steps = call.steps(place.direction);
  const int thread = device::thread(), lane = thread % 32, warp = device::warp();
  const int warp_m = warp % g.warps_m, warp_k = warp / g.warps_m;

  uint4* memory = device::shared_memory();
  Sum* const sums = reinterpret_cast<Sum*>(memory);
  const int sums_of_warp = padded(g.chunk, kColumns<E>) * g.sum_stride();
  memory += 2 * g.warps_k * sums_of_warp * int(sizeof(Sum)) / 16;
  // A thread finishes the same two units of several rows.
  const int pairs = g.units / 2, rows_at_once = kThreads / pairs;
  const int first_row = thread / pairs, unit = place.member * g.units + thread % pairs * 2;
  const bool finishes = first_row < rows_at_once && unit < g.H;
  Sum* const biases = reinterpret_cast<Sum*>(memory); // registers are scarce
  memory += g.units * int(sizeof(Sum)) / 16;
  for (int u = thread; u < g.units; u += kThreads) {
    const int of = place.member * g.units + u;
    const auto bias = [&](const void* b) {
      return b != nullptr && of < g.H ? E::load(static_cast<const Stored*>(b)[of]) : Sum(0);
    };
    biases[u] = bias(d.b_ih) + bias(d.b_hh);
  }

  Exchange<E> exchange(call, place, memory);
  const int parts = Exchange<E>::kPersistent ? max(0, g.warp_blocks * MT - kRegisterParts) : 0;
  uint4* const rest = memory + warp * (parts * (kPartBytes / 16));
  memory += g.warps_m * g.warps_k * parts * (kPartBytes / 16);
  const WarpWeights<E, MT, Exchange<E>::kPersistent> weights(
      g, call.weights + place.direction * g.weight_words(),
      place.member * (g.units / 16) + warp_m * MT,
      warp_k < g.warps_k ? warp_k * g.warp_blocks : g.blocks, lane, rest);

  // With the rows of this group.
  const auto step_at = [&](int i) {
    const Step step = steps.at(i);
    return Step{step.start, g.local_rows(step.rows, place.group)};
  };
  Inputs<E> inputs;
  const auto fetch = [&](const Step step, int first) {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int row = first + first_row + p * rows_at_once;
      const bool there = finishes && first_row + p * rows_at_once < g.chunk && row < step.rows;
      const int64_t b = g.batch_row(row, place.group);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const bool inside = there && unit + e < g.H;
        inputs.clear(p, e);
        if (inside && call.backward) {
          const Stored* const dy = static_cast<const Stored*>(d.in.data);
          inputs.set(p, e, dy != nullptr ? dy[steps.offset(d.in, step, b) + unit + e] : Stored(0),
                     static_cast<const Stored*>(d.h.data)[steps.offset(d.h, step, b) + unit + e]);
        } else if (inside) {
          inputs.set(p, e,
                     static_cast<const Sum*>(d.in.data)[steps.offset(d.in, step, b) + unit + e]);
        }
      }
    }
  };

  int rows_before = step_at(call.first - 1).rows;
  Step now = step_at(call.first), next = step_at(call.first + 1);
  fetch(now, 0);
  int buffer = 0; // of the partial sums: two, so that one barrier a chunk is enough
  for (int i = call.first; i < call.last; ++i) {
    const Step after = step_at(i + 2);
    // Back through time, rows that were there a step ago and no longer are have only dh0 to come.
    const int rows = call.backward && d.end != nullptr ? max(now.rows, rows_before) : now.rows;
    if (rows == 0) {
      fetch(next, 0);
    } else {
      exchange.request(i, 0, min(rows, g.chunk));
    }
    for (int first = 0; first < rows; first += g.chunk) {
      const int count = min(g.chunk, rows - first), ahead = first + g.chunk;
      const bool last = ahead >= rows;
      if (!last) {
        exchange.request(i, ahead, min(g.chunk, rows - ahead));
      }
      const uint4* const h = exchange.rows(i, first, !last);
      Sum* const all = sums + buffer * g.warps_k * sums_of_warp;
      buffer ^= 1;
      device::sync_warp();
      if (warp_k < g.warps_k) {
        // Wide where that saves reading weights; those in registers cost nothing to read, but the
        // sums would need more registers than are left.
        constexpr int kWide = E::kMatrix && Exchange<E>::kPersistent ? 2 : 4;
        constexpr int kOne = kColumns<E>, kMany = kWide * kOne;
        const int stride = exchange.stride();
        Sum* to = all + warp_k * sums_of_warp + warp_m * MT * 16;
        const uint4* from = h + warp_k * g.warp_blocks * 4;
        for (int left = count; left > 0;) {
          const bool wide = E::kMatrix ? left > kMany / 2 : left >= kMany;
          if (wide) {
            weights.template multiply<kWide>(from, stride, to, g.sum_stride(), lane);
          } else {
            weights.template multiply<1>(from, stride, to, g.sum_stride(), lane);
          }
          const int rows_done = wide ? kMany : kOne;
          left -= rows_done;
          from += rows_done * stride;
          to += rows_done * g.sum_stride();
        }
      }
      device::sync_block();

      Sum values[kPairs][2];
      const Two<Sum> bias = *reinterpret_cast<const Two<Sum>*>(biases + thread % pairs * 2);
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
        const int in_chunk = first_row + p * rows_at_once, row = first + in_chunk;
        if (!finishes || in_chunk >= count) {
          continue;
        }
        const Sum* partial = all + in_chunk * g.sum_stride() + thread % pairs * 2;
        Sum product[2] = {0, 0};
#pragma unroll 4
        for (int w = 0; w < g.warps_k; ++w, partial += sums_of_warp) {
          const Two<Sum> two = *reinterpret_cast<const Two<Sum>*>(partial);
          product[0] += two.first;
          product[1] += two.second;
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          Sum value = product[e];
          if (!call.backward) {
            value += inputs.pre(p, e) + (e == 0 ? bias.first : bias.second);
            // Written so that NaN stays NaN.
            value = !call.relu ? E::tanh(value) : value < 0 ? Sum(0) : value;
          } else {
            if (row >= rows_before) { // the row's first step: there is dh_n in place of a product
              const int64_t at = g.batch_row(row, place.group) * g.H + unit + e;
              value = d.begin != nullptr && unit + e < g.H
                          ? E::load(static_cast<const Stored*>(d.begin)[at])
                          : Sum(0);
            }
            if (row < now.rows) {
              const Sum y = inputs.h(p, e);
              value += inputs.dy(p, e);
              value = !call.relu ? value * (1 - y * y) : y > 0 ? value : Sum(0);
            }
          }
          values[p][e] = unit + e < g.H ? value : Sum(0);
        }
        if (row < now.rows) {
          exchange.publish(i, row, unit, {E::operand(values[p][0]), E::operand(values[p][1])});
        }
      }
      if (last) {
        exchange.arrive();
      }
      // While the others arrive: what nobody waits for.
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
        const int in_chunk = first_row + p * rows_at_once, row = first + in_chunk;
        if (!finishes || in_chunk >= count) {
          continue;
        }
        const int64_t b = g.batch_row(row, place.group);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (unit + e >= g.H) {
            continue;
          }
          const Stored value = E::store(values[p][e]);
          if (row < now.rows) {
            static_cast<Stored*>(d.out.data)[steps.offset(d.out, now, b) + unit + e] = value;
          }
          if (d.end != nullptr && (call.backward ? row >= now.rows : row >= next.rows)) {
            static_cast<Stored*>(d.end)[b * g.H + unit + e] = value;
          }
        }
      }
      fetch({last ? next.start : now.start, last ? next.rows : now.rows}, last ? 0 : ahead);
      if (last) {
        exchange.wait();
      }
    }
    rows_before = now.rows, now = next, next = after;
  }
}

} // namespace rnnfast::cuda
