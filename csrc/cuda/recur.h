// The kernels that keep W_hh on the chip for the whole sequence. There is one loop over the time
// steps, for every product (product.h) and every exchange of the state (exchange.h).
//
// The time of a step is a chain of latencies, so everything that can be decided before the loop is
// decided there. Pointers are kept and advanced. Inputs are loaded kAhead steps before their use.
// Predicates of loads and stores mask what is outside of the problem.
//
// A row that is not active in a step of a packed batch keeps its state. So after the last step
// every row has its last state, which is h_n in the forward pass. In the backward pass one more
// product gives W_hh^T dpre of every row, which is dh0.
//
// Where a reset divides two computed steps, zeros are published in place of the state between them.
// The output of the earlier step, and the state that its thread keeps, stay what they are.
//
// Leaky units differ in two points. After a reset the state that a thread keeps becomes zero, too,
// and a current publishes f(0) in the forward pass. For dh0 of a current, the last product is
// multiplied by f'(r_0), and for both kinds the gradient that passes through the leak is added.
#pragma once

#include <type_traits>

#include "exchange.h"
#include "leak.h"

namespace rnnfast::cuda {

// Calls f with the constants 0, 1, ..., N - 1.
template <int I> struct Constant {
  RNNFAST_DEVICE constexpr operator int() const { return I; }
};
template <int N, class F> RNNFAST_DEVICE void unrolled(const F& f) {
  if constexpr (N > 0) {
    unrolled<N - 1>(f);
    f(Constant<N - 1>());
  }
}

// The place of a thread's first cell in a sequence. `at` is the place in the next computed step.
// The host has arranged that the first computed step is the first in memory. In a packed batch `at`
// is the place in the first row of all. `step` is the distance to the next step, or to the next row
// of a packed batch. `hop` is the distance to the thread's next cell.
template <class T> struct Walk {
  T* at;
  int64_t step, hop;

  RNNFAST_DEVICE void advance() {
    at += step;
    device::keep(at);
  }
};

template <class P, template <class> class Exchange, bool kBackward, Mode kMode>
__global__ void __launch_bounds__(kThreads, 1) recur(const __grid_constant__ Call call) {
  if constexpr (!Exchange<P>::kAvailable) {
    return; // this kernel is never launched on such a device
  }
  using E = typename P::E;
  using Stored = typename E::Stored;
  using Sum = typename E::Sum;
  using In = std::conditional_t<kBackward, Stored, Sum>;
  constexpr int kCells = P::kCells, kUnits = P::kUnits;
  constexpr bool kPacked = kMode != Mode::kDense, kLeaky = kMode == Mode::kLeaky;
  constexpr bool kResets = kMode == Mode::kResets || kLeaky;
  // The steps of leaky units are longer and have more code.
  constexpr int kAhead = kLeaky ? (P::kAhead + 1) / 2 : P::kAhead;
  const Geometry& g = call.geometry;
  const Place place(call);
  const Direction& d = call.direction[place.direction];
  const Steps steps = call.steps(place.direction);
  const int T = call.T, H = g.H, rows = g.local_rows(call.B, place.group);
  const bool relu = call.relu;

  uint4* const memory = device::shared_memory();
  P product(g, call.weights + place.direction * g.weight_words() + place.member * g.member_words(),
            rows, min(g.units, H - place.member * g.units), memory);
  Exchange<P> exchange(call, place, rows, product, memory + P::kSharedWords);

  // Cell j is in row[j] of the batch, which is the largest number if there is no such row.
  // inside[e] says whether unit e is below H. limit[j][e] is T if both exist, and 0 otherwise.
  const int unit = place.member * g.units + product.unit();
  int row[kCells], limit[kCells][kUnits];
  bool inside[kUnits];
  // The values that were published last. In the forward pass of a current this is s, while f(s) is
  // published.
  Sum last[kCells][kUnits];
  // Backward: dh_n, which is added in the first step of a row. For leaky units, the gradient of the
  // state that passed through the leak takes its place in later steps.
  Sum extra[kCells][kUnits];
  Sum bias[kUnits];
#pragma unroll
  for (int e = 0; e < kUnits; ++e) {
    inside[e] = unit + e < H;
    const auto add = [&](const void* b) {
      return b != nullptr && inside[e] ? E::load(static_cast<const Stored*>(b)[unit + e]) : Sum(0);
    };
    bias[e] = add(d.b_ih) + add(d.b_hh);
#pragma unroll
    for (int j = 0; j < kCells; ++j) {
      const bool exists = product.row(j) < rows;
      row[j] = exists ? int(g.batch_row(product.row(j), place.group)) : INT32_MAX;
      limit[j][e] = exists && inside[e] ? T : 0;
      const void* const state = kLeaky && !kBackward ? call.leak.first : d.begin;
      const Stored* const begin = static_cast<const Stored*>(state);
      const Sum value = limit[j][e] > 0 && begin != nullptr
                            ? E::load(begin[int64_t(row[j]) * H + unit + e])
                            : Sum(0);
      last[j][e] = kBackward ? Sum(0) : value;
      extra[j][e] = kBackward ? value : Sum(0);
    }
  }
  const auto walk = [&](auto* data, const auto& sequence, int column) {
    const int64_t first = g.batch_row(product.row(0), place.group);
    const int64_t hop = g.batch_row(product.row(1), place.group) - first;
    const bool by_rows = kResets ? call.starts != nullptr : kPacked;
    return Walk<std::remove_pointer_t<decltype(data)>>{data + first * sequence.row + column,
                                                       by_rows ? sequence.row : sequence.step,
                                                       hop * sequence.row};
  };
  Walk<const In> in = walk(static_cast<const In*>(d.in.data), d.in, unit);
  Walk<const Stored> h = walk(static_cast<const Stored*>(d.h.data), d.h, unit);
  Walk<Stored> out = walk(static_cast<Stored*>(d.out.data), d.out, unit);
  Walk<const bool> reset{};
  if constexpr (kResets) {
    if (!kLeaky || call.reset.data != nullptr) {
      reset = walk(call.reset.data, call.reset, 0);
    }
  }

  // What only leaky units need. `zero` is what a thread publishes where the state is zero.
  const Leaky& leak = call.leak;
  const bool current = leak.current;
  Sum alpha[kUnits];
  Words<P> zero{};
  Walk<const Stored> dstates{};
  // The place in `leak.kept` of the thread's first cell of the first row, or nullptr. The rows lie
  // there as in `out`.
  Stored* kept_at = nullptr;
  if constexpr (kLeaky) {
    Sum of_zero[1][kUnits] = {};
    apply<E>(leak.f, of_zero);
#pragma unroll
    for (int e = 0; e < kUnits; ++e) {
      alpha[e] = inside[e] ? E::load(static_cast<const Stored*>(leak.alpha)[unit + e]) : Sum(0);
      of_zero[0][e] = inside[e] && current && !kBackward ? of_zero[0][e] : Sum(0);
    }
    E::operands(of_zero[0], zero.word);
    if constexpr (kBackward) {
      dstates = walk(static_cast<const Stored*>(leak.dstates.data), leak.dstates, unit);
    }
    if (leak.kept != nullptr) {
      kept_at = walk(static_cast<Stored*>(leak.kept), d.out, unit).at;
    }
  }

  In ins[kAhead][kCells][kUnits];
  Stored hs[kAhead][kCells][kUnits], dss[kAhead][kCells][kUnits];
  bool cut[kAhead][kCells]; // whether a reset comes after the step
  // The steps of the slots, and the two after those.
  Step packed[kAhead], later{0, 0}, after{0, 0};
  const auto fetch = [&](auto slot, int i, const Step& at, const Step& next) {
#pragma unroll
    for (int j = 0; j < kCells; ++j) {
      if constexpr (kResets) {
        // The reset is that of the later one of the two time steps.
        const int start = steps.from_end ? at.start : next.start;
        const int count = steps.from_end ? at.rows : next.rows;
        cut[slot][j] = row[j] < count && (!kLeaky || reset.at != nullptr) &&
                       reset.at[start * reset.step + j * reset.hop];
      }
#pragma unroll
      for (int e = 0; e < kUnits; ++e) {
        const bool active = kPacked ? inside[e] && row[j] < at.rows : i < limit[j][e];
        const int64_t offset = (kPacked ? at.start * in.step : 0) + j * in.hop + e;
        ins[slot][j][e] = active ? in.at[offset] : In(0);
        if constexpr (kBackward) {
          hs[slot][j][e] =
              active ? h.at[(kPacked ? at.start * h.step : 0) + j * h.hop + e] : Stored(0);
        }
        if constexpr (kBackward && kLeaky) {
          const bool given = active && current;
          dss[slot][j][e] =
              given ? dstates.at[at.start * dstates.step + j * dstates.hop + e] : Stored(0);
        }
      }
    }
    if constexpr (!kPacked) {
      in.advance();
      if constexpr (kBackward) {
        h.advance();
      }
    }
  };
  unrolled<kAhead>([&](auto slot) {
    packed[slot] = kPacked ? steps.at(slot) : Step{0, 0};
    fetch(slot, slot, packed[slot], kResets ? steps.at(slot + 1) : Step{0, 0});
  });
  later = kPacked ? steps.at(kAhead) : Step{0, 0};
  after = kResets ? steps.at(kAhead + 1) : Step{0, 0};

  const auto step = [&](auto slot, int i) {
    product.multiply(exchange.state(i));
    if constexpr (P::kThroughShared || Exchange<P>::kReadApart) {
      device::sync_block();
    }
    exchange.read(i);
    Words<P> words[kCells];
    const auto publish = [&](int j, const Words<P>& own) {
      Words<P> published = own;
      if constexpr (kResets) {
#pragma unroll
        for (int w = 0; w < Words<P>::kCount; ++w) {
          published.word[w] = cut[slot][j] ? zero.word[w] : own.word[w];
        }
      }
      exchange.publish(i, j, product, published);
    };
    // Leaky units: what is written to `out` and to `kept`.
    [[maybe_unused]] Sum output[kCells][kUnits], kept_value[kCells][kUnits];
    if constexpr (kLeaky) {
      // All values meet the nonlinearity together, so that it is chosen once.
      Sum sums[kCells][kUnits], values[kCells][kUnits];
#pragma unroll
      for (int j = 0; j < kCells; ++j) {
        const bool active = row[j] < packed[slot].rows;
        product.sum(j, sums[j]);
#pragma unroll
        for (int e = 0; e < kUnits; ++e) {
          if constexpr (!kBackward) {
            const Sum p = sums[j][e] + ins[slot][j][e] + bias[e];
            sums[j][e] = active ? (1 - alpha[e]) * last[j][e] + alpha[e] * p : last[j][e];
            values[j][e] = current ? sums[j][e] : p;
          } else {
            sums[j][e] += E::load(ins[slot][j][e]);
            values[j][e] = current ? sums[j][e] : alpha[e] * (sums[j][e] + extra[j][e]);
          }
        }
      }
      if constexpr (!kBackward) {
        apply<E>(leak.f, values);
      } else {
        multiply_by_derivative<E>(leak.f, values, hs[slot]);
      }
#pragma unroll
      for (int j = 0; j < kCells; ++j) {
        const bool active = row[j] < packed[slot].rows;
#pragma unroll
        for (int e = 0; e < kUnits; ++e) {
          const Sum value = values[j][e];
          if constexpr (!kBackward) {
            const Sum leaked = active ? (1 - alpha[e]) * last[j][e] + alpha[e] * value : last[j][e];
            const Sum state = current ? sums[j][e] : leaked;
            kept_value[j][e] = current ? state : value;
            output[j][e] = inside[e] ? (current ? value : state) : Sum(0);
            last[j][e] = inside[e] && !cut[slot][j] ? state : Sum(0);
          } else {
            const Sum above = current ? value + E::load(dss[slot][j][e]) : sums[j][e];
            kept_value[j][e] = above + extra[j][e];
            const Sum dp = current ? alpha[e] * kept_value[j][e] : value;
            const Sum carried = cut[slot][j] ? Sum(0) : (1 - alpha[e]) * kept_value[j][e];
            extra[j][e] = active ? carried : extra[j][e];
            last[j][e] = output[j][e] = !inside[e] ? Sum(0) : active ? dp : last[j][e];
          }
        }
        E::operands(output[j], words[j].word);
        publish(j, words[j]);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kCells; ++j) {
        const bool active = !kPacked || row[j] < packed[slot].rows;
        Sum y[kUnits];
        product.sum(j, y);
#pragma unroll
        for (int e = 0; e < kUnits; ++e) {
          if constexpr (!kBackward) {
            y[e] += ins[slot][j][e] + bias[e];
            y[e] = device::select(relu, device::relu(y[e]), E::tanh(y[e]));
          } else {
            y[e] += E::load(ins[slot][j][e]) + extra[j][e];
            const Sum h = E::load(hs[slot][j][e]);
            y[e] = device::select(relu, h > 0 ? y[e] : Sum(0), y[e] * (1 - h * h));
            extra[j][e] = active ? Sum(0) : extra[j][e];
          }
          y[e] = active ? y[e] : last[j][e];
          // Units beyond H stay zero. Otherwise an infinity in a row would become NaN there and
          // spread.
          last[j][e] = y[e] = unit + e < H ? y[e] : Sum(0);
        }
        E::operands(y, words[j].word);
        publish(j, words[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < kCells; ++j) {
#pragma unroll
      for (int e = 0; e < kUnits; ++e) {
        const bool active = kPacked ? inside[e] && row[j] < packed[slot].rows : limit[j][e] > 0;
        if (active && product.owns()) {
          const int64_t at = (kPacked ? packed[slot].start * out.step : 0) + j * out.hop + e;
          out.at[at] = E::stored(kLeaky ? output[j][e] : last[j][e], words[j].word, e);
          if constexpr (kLeaky) {
            if (kept_at != nullptr) {
              kept_at[at] = E::store(kept_value[j][e]);
            }
          }
        }
      }
    }
    if constexpr (!kPacked) {
      out.advance();
    }
    fetch(slot, i + kAhead, later, after);
    if constexpr (kPacked) {
      packed[slot] = later;
      later = kResets ? after : steps.at(i + kAhead + 1);
      after = kResets ? steps.at(i + kAhead + 2) : Step{0, 0};
    }
    exchange.wait(i);
  };
  const int rounds = T / kAhead;
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
    unrolled<kAhead>([&](auto slot) { step(slot, round * kAhead + slot); });
  }
  unrolled<kAhead - 1>([&](auto slot) {
    if (rounds * kAhead + slot < T) {
      step(slot, rounds * kAhead + slot);
    }
  });

  if (d.end != nullptr) {
    if constexpr (kBackward) {
      product.multiply(exchange.state(T));
      if constexpr (P::kThroughShared) {
        device::sync_block();
      }
    }
#pragma unroll
    for (int j = 0; j < kCells; ++j) {
      Sum value[1][kUnits];
      product.sum(j, value[0]);
      if constexpr (kLeaky && kBackward) { // dh0
        Stored r0[1][kUnits] = {};
#pragma unroll
        for (int e = 0; e < kUnits; ++e) {
          if (current && limit[j][e] > 0) {
            r0[0][e] = static_cast<const Stored*>(leak.first)[int64_t(row[j]) * H + unit + e];
          }
        }
        if (current) {
          multiply_by_derivative<E>(leak.f, value, r0);
        }
#pragma unroll
        for (int e = 0; e < kUnits; ++e) {
          value[0][e] += extra[j][e];
        }
      }
#pragma unroll
      for (int e = 0; e < kUnits; ++e) {
        if (product.owns() && limit[j][e] > 0) {
          static_cast<Stored*>(d.end)[int64_t(row[j]) * H + unit + e] =
              E::store(kBackward ? value[0][e] : last[j][e]);
        }
      }
    }
  }
  exchange.finish();
}

} // namespace rnnfast::cuda
