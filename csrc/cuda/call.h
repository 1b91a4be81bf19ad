// The arguments of a launch, the part of the work that a block has, and the kernel that prepares
// the workspace for the other kernels.
#pragma once

#include "element.h"
#include "geometry.h"
#include "recurrence.h"

namespace rnnfast::cuda {

// What the loop over time has to do. kDense and kPacked are layouts of the batch. The others run
// both layouts: kResets with resets inside of sequences, and kLeaky with leaky units, which may
// have resets.
enum class Mode { kDense, kPacked, kResets, kLeaky };

// The arguments of a launch. The workspace holds the packed weights of each direction. If groups
// exchange the state through device memory, it also holds for each group two states, which
// alternate, and a counter.
struct Call {
  Geometry geometry;
  int T, B;
  const int64_t* starts;
  bool backward, relu;
  int first;       // the computed step, for the step kernel
  int first_block; // the first of the blocks of the problem that this launch runs
  Direction direction[2];
  const uint4* weights;       // [directions][members][units by blocks]
  uint4* states;              // [directions * groups] parts of state_words; or nullptr
  int64_t state_words;        // of a group, 16 bytes each
  bool zero_states;           // the states begin as zeros and not as h0
  uint32_t* counters;         // [directions * groups]; or nullptr
  uint4* zeros;               // a row of zeros, read as dy or dstates; or nullptr
  Sequence<const bool> reset; // data == nullptr: no resets
  Leaky leak;

  // The backward pass runs through time against the direction of the forward pass.
  RNNFAST_BOTH Steps steps(int direction_) const {
    return {T, B, starts, direction[direction_].reverse != backward};
  }
};

// The part of the work that a block has.
struct Place {
  int direction, group, team, member; // team: the number among the groups of all directions

  RNNFAST_DEVICE explicit Place(const Call& call)
      : Place(call.geometry, call.first_block + device::block()) {}

private:
  RNNFAST_DEVICE Place(const Geometry& g, int block)
      : direction(block / g.members / g.groups), group(block / g.members % g.groups),
        team(block / g.members), member(block % g.members) {}
};

// Returns an element of what the first step multiplies: h0, or zero in the backward pass.
template <class E>
RNNFAST_DEVICE typename E::Stored initial(const Call& call, int direction, int64_t row, int k) {
  using Stored = typename E::Stored;
  const Stored* const begin = static_cast<const Stored*>(call.direction[direction].begin);
  const bool given = !call.backward && begin != nullptr && row < call.B && k < call.geometry.H;
  return given ? E::operand(E::load(begin[row * call.geometry.H + k])) : Stored(0);
}

// Returns 16 bytes of what the first step multiplies.
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

// Runs before the other kernels, with any number of blocks. It writes W_hh in the order in which
// threads read it, filled up with zeros to whole tiles and blocks. For the backward pass W_hh is
// transposed. It also sets the states and the counters that are in device memory.
template <class E>
__global__ void __launch_bounds__(kThreads)
    prepare(const __grid_constant__ Call call, uint4* weights, int grid) {
  using Stored = typename E::Stored;
  constexpr int kElements = kBlock<E> / 4;
  const Geometry& g = call.geometry;
  const int64_t stride = int64_t(grid) * kThreads;
  const int64_t begin = int64_t(device::block()) * kThreads + device::thread();
  for (int64_t i = begin; i < g.weight_words() * g.directions; i += stride) {
    const int direction = int(i / g.weight_words());
    const int64_t word = i % g.weight_words();
    int64_t unit;
    int k0;
    if (g.by_rows) {
      unit = word / g.row_words(), k0 = int(word % g.row_words()) * kElements;
    } else {
      // For each tile and block of k there are the words of all lanes, first those of rows 0 to 7.
      const int lane = int(word % 32), half = int(word / 32 % 2);
      const int64_t part = word / 64, tile = part / g.blocks;
      unit = tile * 16 + lane / 4 + half * 8;
      k0 = int(part % g.blocks) * kBlock<E> + lane % 4 * kElements;
    }
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
    weights[i] = bits.whole;
  }
  const int teams = g.groups * g.directions;
  if (call.states != nullptr) {
    for (int64_t i = begin; i < call.state_words * teams; i += stride) {
      if (call.zero_states) {
        call.states[i] = uint4{0, 0, 0, 0};
      } else {
        const int team = int(i / call.state_words);
        const int64_t in_state = i % g.state_words();
        const int row = int(in_state / g.row_words());
        call.states[i] = initial_word<E>(call, team / g.groups, g.batch_row(row, team % g.groups),
                                         int(in_state % g.row_words()));
      }
    }
  }
  if (call.counters != nullptr) {
    for (int64_t i = begin; i < teams; i += stride) {
      call.counters[i] = 0;
    }
  }
  if (call.zeros != nullptr) {
    for (int64_t i = begin; i < g.row_words(); i += stride) {
      call.zeros[i] = uint4{0, 0, 0, 0};
    }
  }
}

} // namespace rnnfast::cuda
