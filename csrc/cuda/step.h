// The kernel of a single step, for any size and dtype. It reads W_hh and the state from device
// memory. The end of the launch is the barrier between two steps.
#pragma once

#include "call.h"
#include "leak.h"

namespace rnnfast::cuda {

// The sums of products of a warp, for MT times 16 hidden units and N times kColumns batch rows.
template <class E, int MT, int N> class Sums {
  using Sum = typename E::Sum;

public:
  RNNFAST_DEVICE void add(const Weights (&w)[MT], const uint4 (&h)[N]) {
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        if constexpr (E::kMatrix) {
          const uint4 &low = w[m].low, &high = w[m].high;
          E::mma(c_[0][m][n], low.x, high.x, low.y, high.y, h[n].x, h[n].y);
          E::mma(c_[kChains - 1][m][n], low.z, high.z, low.w, high.w, h[n].z, h[n].w);
        } else {
          c_[0][m][n][0] = E::dot(c_[0][m][n][0], w[m].low, h[n]);
          c_[0][m][n][1] = E::dot(c_[0][m][n][1], w[m].high, h[n]);
        }
      }
    }
  }

  // Stores the sums in a matrix of batch rows by hidden units, whose rows are `stride` apart.
  RNNFAST_DEVICE void store(Sum* to, int stride, int lane) const {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      if constexpr (E::kMatrix) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const Sum sum =
                kChains == 1 ? c_[0][m][n][i] : c_[0][m][n][i] + c_[kChains - 1][m][n][i];
            to[(n * 8 + 2 * t + i % 2) * stride + m * 16 + g + i / 2 * 8] = sum;
          }
        }
      } else {
        // Each of the four lanes with the same g has the sum over its own k.
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int unit = m * 16 + g + i * 8;
          if constexpr (N == 1) {
            Sum sum = c_[0][m][0][i];
            sum += device::shuffle_xor(sum, 1);
            sum += device::shuffle_xor(sum, 2);
            if (t == 0) {
              to[unit] = sum;
            }
          } else { // lane t takes batch row t
            static_assert(N == 4);
            const bool upper = (t & 2) != 0, odd = (t & 1) != 0;
            Sum half[2];
#pragma unroll
            for (int n = 0; n < 2; ++n) {
              const Sum kept = upper ? c_[0][m][n + 2][i] : c_[0][m][n][i];
              const Sum given = upper ? c_[0][m][n][i] : c_[0][m][n + 2][i];
              half[n] = kept + device::shuffle_xor(given, 2);
            }
            const Sum kept = odd ? half[1] : half[0], given = odd ? half[0] : half[1];
            to[t * stride + unit] = kept + device::shuffle_xor(given, 1);
          }
        }
      }
    }
  }

private:
  // Matrix instructions that add to the same sum wait for one another. If there are few of them,
  // two sums are faster than one.
  static constexpr int kChains = E::kMatrix && N == 1 ? 2 : 1;
  Sum c_[kChains][MT][N][E::kMatrix ? 4 : 2] = {};
};

// A thread finishes kPairs pairs of units at a time, each of a different row. A warp multiplies
// kTiles tiles of 16 units.
constexpr int kPairs = 4, kTiles = 2;

// Two adjacent sums, which are read at once.
template <class E> struct alignas(2 * sizeof(typename E::Sum)) TwoSums {
  typename E::Sum first, second;
};

// Multiplies the part of W_hh that a warp has with N * kColumns<E> rows of the state, and stores
// the sums in `to`. `h` is the first row, at the first block of k of the warp.
template <class E, int N>
RNNFAST_DEVICE void multiply(const uint4* weights, int tile_stride, int blocks, const uint4* h,
                             int stride, typename E::Sum* to, int sum_stride, int lane) {
  Sums<E, kTiles, N> sums;
  h += (E::kMatrix ? lane / 4 * stride : 0) + lane % 4;
#pragma unroll 4
  for (int k = 0; k < blocks; ++k) {
    Weights w[kTiles];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      w[m].low = weights[m * tile_stride + k * 64];
      w[m].high = weights[m * tile_stride + k * 64 + 32];
    }
    uint4 rows[N];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      rows[n] = h[n * kColumns<E> * stride + k * 4];
    }
    sums.add(w, rows);
  }
  sums.store(to, sum_stride, lane);
}

// What a cell of leaky units gives in a step: its output, the value for Leaky::kept, and the state
// or its gradient, which is written where a sequence ends.
template <class E> struct LeakyCell {
  typename E::Sum out, kept, end;
};

// Finishes one cell of a step of leaky units: the sum `value` of the unit in row b of the batch. It
// also updates Leaky::carry. `is_first` says whether it is the row's first step, and `active`
// whether the row has this step. Otherwise only dh0 is wanted.
template <class E>
RNNFAST_DEVICE LeakyCell<E> finish_leaky(const Call& call, const Step& now, int64_t b, int unit,
                                         typename E::Sum value, bool is_first, bool active,
                                         bool is_reset) {
  using Sum = typename E::Sum;
  using Stored = typename E::Stored;
  const Direction& d = call.direction[0];
  const Leaky& leak = call.leak;
  const Steps steps = call.steps(0);
  const int64_t cell = b * call.geometry.H + unit;
  const auto at = [&](const auto& sequence) {
    const Stored* const data = static_cast<const Stored*>(sequence.data);
    const bool given = data != nullptr && active;
    return given ? E::load(data[steps.offset(sequence, now, b) + unit]) : Sum(0);
  };
  const auto of_state = [&](const void* states) {
    return states != nullptr ? E::load(static_cast<const Stored*>(states)[cell]) : Sum(0);
  };
  Sum& carry = static_cast<Sum*>(leak.carry)[cell];
  const Sum alpha = E::load(static_cast<const Stored*>(leak.alpha)[unit]);
  const Sum before = is_first ? of_state(call.backward ? d.begin : leak.first) : carry;
  LeakyCell<E> result{};
  with_nonlinearity<E>(leak.f, [&](auto units) {
    if (!call.backward) {
      value += static_cast<const Sum*>(d.in.data)[steps.offset(d.in, now, b) + unit];
      const Sum target = leak.current ? value : units.value(value);
      const Sum state = (1 - alpha) * before + alpha * target;
      carry = is_reset ? Sum(0) : state;
      result = {leak.current ? units.value(state) : state, leak.current ? state : target, state};
    } else if (!active) {
      const Sum dr = leak.current ? units.times_derivative(value, of_state(leak.first)) : value;
      result.end = dr + before;
    } else {
      value = (is_first ? Sum(0) : value) + at(d.in);
      const Sum y = at(d.h);
      const Sum dr = leak.current ? units.times_derivative(value, y) : value;
      result.kept = dr + before + at(leak.dstates);
      const Sum dtarget = alpha * result.kept;
      result.out = leak.current ? dtarget : units.times_derivative(dtarget, y);
      carry = is_reset ? Sum(0) : (1 - alpha) * result.kept;
    }
  });
  return result;
}

// Computes step call.first.
template <class E, bool kLeaky>
__global__ void __launch_bounds__(kThreads, 1) step(const __grid_constant__ Call call) {
  using Stored = typename E::Stored;
  using Sum = typename E::Sum;
  const Geometry& g = call.geometry;
  const Place place(call);
  const Direction& d = call.direction[place.direction];
  const Steps steps = call.steps(place.direction);
  const int thread = device::thread(), lane = thread % 32, warp = device::warp();
  const int warp_m = warp % g.warps_m, warp_k = warp / g.warps_m;
  const int i = call.first;

  Sum* const sums = reinterpret_cast<Sum*>(device::shared_memory());
  const int sums_of_warp = padded(g.chunk, kColumns<E>) * g.sum_stride();
  // A thread finishes the same two units of several rows.
  const int pairs = g.units / 2, rows_at_once = kThreads / pairs;
  const int first_row = thread / pairs, unit = place.member * g.units + thread % pairs * 2;
  const bool finishes = first_row < rows_at_once && unit < g.H;
  Sum bias[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const auto add = [&](const void* b) {
      return b != nullptr && unit + e < g.H ? E::load(static_cast<const Stored*>(b)[unit + e])
                                            : Sum(0);
    };
    bias[e] = add(d.b_ih) + add(d.b_hh);
  }

  const int first_block = warp_k * g.warp_blocks;
  const int blocks = min(g.warp_blocks, g.blocks - first_block);
  const int tile_stride = g.blocks * (kPartBytes / 16);
  const uint4* const weights =
      call.weights + place.direction * g.weight_words() +
      (place.member * (g.units / 16) + warp_m * kTiles) * int64_t(tile_stride) +
      first_block * (kPartBytes / 16) + lane;
  const int stride = g.row_words();
  const uint4* const state = call.states + (place.team * 2 + i % 2) * g.state_words();
  uint4* const written = call.states + (place.team * 2 + (i + 1) % 2) * g.state_words();

  // The number of rows that this group has in step i.
  const auto rows_at = [&](int i) { return g.local_rows(steps.at(i).rows, place.group); };
  const int rows_before = rows_at(i - 1), rows_next = rows_at(i + 1);
  const Step now{steps.at(i).start, rows_at(i)};
  // A reset comes after the step if the later one of the two time steps has it.
  const Step later = steps.at(steps.from_end ? i : i + 1);
  const auto is_reset = [&](int64_t b) {
    return call.reset.data != nullptr && b < later.rows &&
           call.reset.data[steps.offset(call.reset, later, b)];
  };
  Pair<E> zero{}; // what is published where the state is zero
  if (kLeaky && call.leak.current && !call.backward) {
    with_nonlinearity<E>(call.leak.f, [&](auto units) {
      zero.first = unit < g.H ? E::operand(units.value(0)) : Stored(0);
      zero.second = unit + 1 < g.H ? E::operand(units.value(0)) : Stored(0);
    });
  }
  // In the backward pass, rows that were active a step ago and are not now only need dh0.
  const int rows = call.backward && d.end != nullptr ? max(now.rows, rows_before) : now.rows;
  for (int first = 0; first < rows; first += g.chunk) {
    const int count = min(g.chunk, rows - first);
    if (warp_k < g.warps_k) {
      constexpr int kOne = kColumns<E>, kMany = 4 * kOne;
      Sum* to = sums + warp_k * sums_of_warp + warp_m * kTiles * 16;
      const uint4* from = state + int64_t(first) * stride + first_block * 4;
      for (int left = count; left > 0;) {
        const bool wide = E::kMatrix ? left > kMany / 2 : left >= kMany;
        if (wide) {
          multiply<E, 4>(weights, tile_stride, blocks, from, stride, to, g.sum_stride(), lane);
        } else {
          multiply<E, 1>(weights, tile_stride, blocks, from, stride, to, g.sum_stride(), lane);
        }
        const int rows_done = wide ? kMany : kOne;
        left -= rows_done;
        from += rows_done * stride;
        to += rows_done * g.sum_stride();
      }
    }
    device::sync_block();
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int in_chunk = first_row + p * rows_at_once, row = first + in_chunk;
      if (!finishes || in_chunk >= count) {
        continue;
      }
      const int64_t b = g.batch_row(row, place.group);
      const Sum* partial = sums + in_chunk * g.sum_stride() + thread % pairs * 2;
      Sum values[2] = {0, 0};
      for (int w = 0; w < g.warps_k; ++w, partial += sums_of_warp) {
        const TwoSums<E> two = *reinterpret_cast<const TwoSums<E>*>(partial);
        values[0] += two.first;
        values[1] += two.second;
      }
      Pair<E> pair{};
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (unit + e >= g.H) {
          continue;
        }
        if constexpr (kLeaky) {
          const bool active = row < now.rows;
          const LeakyCell<E> cell = finish_leaky<E>(call, now, b, unit + e, values[e] + bias[e],
                                                    row >= rows_before, active, is_reset(b));
          (e == 0 ? pair.first : pair.second) = E::operand(cell.out);
          if (active) {
            static_cast<Stored*>(d.out.data)[steps.offset(d.out, now, b) + unit + e] =
                E::store(cell.out);
          }
          if (active && call.leak.kept != nullptr) {
            static_cast<Stored*>(call.leak.kept)[steps.offset(d.out, now, b) + unit + e] =
                E::store(cell.kept);
          }
          if (d.end != nullptr && (call.backward ? !active : row >= rows_next)) {
            static_cast<Stored*>(d.end)[b * g.H + unit + e] = E::store(cell.end);
          }
          continue;
        }
        Sum value = values[e];
        if (!call.backward) {
          const Sum* const pre = static_cast<const Sum*>(d.in.data);
          value += pre[steps.offset(d.in, now, b) + unit + e] + bias[e];
          // This order of the comparison keeps NaN.
          value = !call.relu ? E::tanh(value) : value < 0 ? Sum(0) : value;
        } else {
          if (row >=
              rows_before) { // in the first step of a row dh_n takes the place of the product
            value = d.begin != nullptr
                        ? E::load(static_cast<const Stored*>(d.begin)[b * g.H + unit + e])
                        : Sum(0);
          }
          if (row < now.rows) {
            const Stored* const dy = static_cast<const Stored*>(d.in.data);
            const Sum y =
                E::load(static_cast<const Stored*>(d.h.data)[steps.offset(d.h, now, b) + unit + e]);
            value += dy != nullptr ? E::load(dy[steps.offset(d.in, now, b) + unit + e]) : Sum(0);
            value = !call.relu ? value * (1 - y * y) : y > 0 ? value : Sum(0);
          }
        }
        (e == 0 ? pair.first : pair.second) = E::operand(value);
        if (row < now.rows) {
          static_cast<Stored*>(d.out.data)[steps.offset(d.out, now, b) + unit + e] =
              E::store(value);
        }
        if (d.end != nullptr && (call.backward ? row >= now.rows : row >= rows_next)) {
          static_cast<Stored*>(d.end)[b * g.H + unit + e] = E::store(value);
        }
      }
      if (row < now.rows) {
        reinterpret_cast<Pair<E>*>(written + int64_t(row) * stride)[unit / 2] =
            is_reset(b) ? zero : pair;
      }
    }
    device::sync_block(); // before the sums of the next chunk
  }
}

} // namespace rnnfast::cuda
