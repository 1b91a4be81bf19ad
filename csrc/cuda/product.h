// The products of the kernels that keep W_hh on the chip. Every thread holds its part of the W_hh
// of a member in registers, except for a part in shared memory whose size is S. It multiplies W_hh
// with the state in shared memory. Then it finishes some of the sums, for `kCells` rows of the
// batch and `kUnits` adjacent units. All sizes are template arguments, because the time of a step
// depends on the number of its instructions.
#pragma once

#include "call.h"

namespace rnnfast::cuda {

// Two adjacent sums, which are read at once.
template <class Sum> struct alignas(2 * sizeof(Sum)) Two {
  Sum first, second;
};

// The product by matrix instructions. A block has warps_m x WK warps. Each warp multiplies MT tiles
// of 16 units and KB blocks of k, for 8 N rows of the batch. The last S of the blocks of k are in
// shared memory. A thread finishes J cells. The partial sums of the warps are stored in shared
// memory and added in a fixed order.
template <class Element, int MT, int KB, int WK, int N, int J, int S = 0> class MatrixProduct {
  static constexpr int kSumWords = WK * 8 * N * (kWarps / WK * 16 * MT + 4) / 4;
  static constexpr int kHeld = KB - S; // blocks of k in registers

public:
  using E = Element;
  using Sum = float;
  static constexpr int kUnits = 2, kCells = J;
  static constexpr int kRows = 8 * N, kBlocks = KB * WK;
  static constexpr int kUnitStep = 16 * MT, kMostUnits = kWarps / WK * kUnitStep;
  // Inputs are loaded this number of steps before their use. The loop over time is unrolled as
  // often.
  static constexpr int kAhead = WK * J * N == 1 ? 4 : N < 4 && MT * KB * J < 64 ? 2 : 1;
  static constexpr bool kByRows = false;
  // A barrier of the block makes the sums visible to the threads that finish them.
  static constexpr bool kThroughShared = true;
  // The distance between two rows of the state, in words of 16 bytes. It is an odd multiple of 64
  // bytes, so that the 8 lanes that read 2 rows at a time use different banks.
  static constexpr int kStride = 4 * (kBlocks | 1);
  static constexpr int kSharedWords = kSumWords + kWarps * S * MT * (kPartBytes / 16);

  static constexpr int threads(int units) { return units / kUnitStep * WK * 32; }
  static constexpr int rows(int units) { // the rows that a block of `units` finishes
    return min(kRows, J * (threads(units) / (units / 2)));
  }

  // `units` is the number of units of the member that are below H.
  RNNFAST_DEVICE MatrixProduct(const Geometry& g, const uint4* weights, int rows, int units,
                               uint4* memory)
      : shared_(memory + kSumWords + device::warp() * S * MT * 64 + device::thread() % 32),
        rows_(rows), unit_(device::thread() % (g.units / 2) * 2) {
    const int lane = device::thread() % 32, warp = device::warp();
    const int warp_m = warp % g.warps_m, warp_k = warp / g.warps_m;
    weights += (warp_m * MT * kBlocks + warp_k * KB) * (kPartBytes / 16) + lane;
#pragma unroll
    for (int k = 0; k < KB; ++k) {
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        const uint4 low = weights[(m * kBlocks + k) * 64];
        const uint4 high = weights[(m * kBlocks + k) * 64 + 32];
        const uint4 parts[2] = {{low.x, high.x, low.y, high.y}, {low.z, high.z, low.w, high.w}};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (k < kHeld) {
            weights_[k][m][i] = parts[i];
          } else { // which only this lane reads
            shared_[(((k - kHeld) * MT + m) * 2 + i) * 32] = parts[i];
          }
        }
      }
    }
    const int pairs = g.units / 2;
    first_row_ = device::thread() / pairs, row_step_ = g.threads / pairs;
    // A thread has no cells if there are more threads than cells, or if its 16 bytes of the state
    // are beyond H. It must not read sums, because it sends nothing that would show the other
    // threads that it has read them.
    constexpr int kTogether = 16 / int(sizeof(typename E::Stored));
    first_row_ =
        first_row_ < row_step_ && unit_ / kTogether * kTogether < units ? first_row_ : kRows;
    from_ = lane / 4 * kStride + warp_k * KB * 4 + lane % 4;
    float* const sums = reinterpret_cast<float*>(memory);
    to_ = sums + (warp_k * kRows + lane % 4 * 2) * kSumStride + warp_m * MT * 16 + lane / 4;
    sums_ = sums + first_row_ * kSumStride + unit_;
  }

  // The cells of this thread: the row of cell j in the group, and the first unit in the member.
  RNNFAST_DEVICE int row(int j) const { return first_row_ + j * row_step_; }
  RNNFAST_DEVICE int unit() const { return unit_; }
  // No other thread finishes the same cells.
  RNNFAST_DEVICE bool owns() const { return true; }

  RNNFAST_DEVICE void multiply(const uint4* state) {
    float c[kChains][MT][N][4] = {};
    state += from_;
#pragma unroll
    for (int k = 0; k < KB; ++k) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const uint4 h = state[n * 8 * kStride + k * 4];
#pragma unroll
        for (int m = 0; m < MT; ++m) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const uint4 w = k < kHeld ? weights_[min(k, kHeld - 1)][m][i]
                                      : shared_[(((k - kHeld) * MT + m) * 2 + i) * 32];
            E::mma(c[(2 * k + i) % kChains][m][n], w.x, w.y, w.z, w.w, i == 0 ? h.x : h.z,
                   i == 0 ? h.y : h.w);
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float sum = c[0][m][n][i];
#pragma unroll
          for (int chain = 1; chain < kChains; ++chain) {
            sum += c[chain][m][n][i];
          }
          to_[(n * 8 + i % 2) * kSumStride + m * 16 + i / 2 * 8] = sum;
        }
      }
    }
  }

  RNNFAST_DEVICE void sum(int j, Sum (&to)[kUnits]) const {
    to[0] = to[1] = 0;
    if (row(j) < rows_) {
#pragma unroll
      for (int k = 0; k < WK; ++k) {
        const Two<Sum> two = *reinterpret_cast<const Two<Sum>*>(sums_ + j * row_step_ * kSumStride +
                                                                k * kRows * kSumStride);
        to[0] = k == 0 ? two.first : to[0] + two.first;
        to[1] = k == 0 ? two.second : to[1] + two.second;
      }
    }
  }

  // kSharers threads finish the 16 bytes of the state that hold this thread's first cell. kLow and
  // kHigh are the bits in which their lanes differ. sharer() is the number of this thread among
  // them.
  static constexpr int kSharers = 8 / int(sizeof(typename E::Stored));
  static constexpr int kLow = 1, kHigh = 2;
  RNNFAST_DEVICE int sharer() const { return device::thread() % kSharers; }

private:
  // Matrix instructions that add to the same sum wait for one another, so there are several sums.
  static constexpr int kChains = MT * N == 1 && KB >= 4 ? 4 : MT * N <= 2 ? 2 : 1;
  // 4 more than a multiple of 16, so that lanes of different rows use different banks.
  static constexpr int kSumStride = kMostUnits + 4;

  uint4 weights_[kHeld][MT][2]; // one element for each matrix instruction
  uint4* const shared_;
  int rows_, unit_, first_row_, row_step_, from_;
  float *to_, *sums_;
};

// The product by multiply-adds. Q lanes of a warp share U units. Each lane reads every Q-th 16
// bytes of R rows of the state, V times, and multiplies them with W_hh of all U units. So a load
// feeds 4 U instructions. The last S of the V words of W_hh are in shared memory. Then the lanes
// add up their sums. In each step of this a lane gives away half of the sums that it holds.
template <class Element, int Q, int U, int V, int R, int S = 0> class ScalarProduct {
  static constexpr int kSums = U * R;                       // of Q lanes; sum unit * R + row
  static constexpr int kCopies = kSums < Q ? Q / kSums : 1; // lanes that end up with the same sum

public:
  using E = Element;
  using Sum = float;
  static constexpr int kUnits = 1, kCells = kSums > Q ? kSums / Q : 1;
  static constexpr int kRows = R, kBlocks = Q * V / 4;
  static constexpr int kUnitStep = U * 32 / Q, kMostUnits = kThreads / Q * U;
  static constexpr int kAhead = U * V * R <= 16 ? 4 : U * V * R <= 64 ? 2 : 1;
  static constexpr bool kByRows = true, kThroughShared = false;
  static constexpr int kStride = 4 * kBlocks, kSharedWords = kThreads * U * S;
  static_assert(Q <= 32 && U * 4 >= kCells && kCells <= R && Q * V % 4 == 0);

  static constexpr int threads(int units) { return units / U * Q; }
  static constexpr int rows(int) { return R; }

  RNNFAST_DEVICE ScalarProduct(const Geometry&, const uint4* weights, int, int, uint4* memory)
      : shared_(memory + device::thread()), lane_(device::thread() % Q) {
    const int group = device::thread() / Q;
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const uint4 w = weights[(group * U + u) * kStride + v * Q + lane_];
        if (v < kHeld) {
          weights_[u][v] = w;
        } else { // which only this thread reads
          shared_[((v - kHeld) * U + u) * kThreads] = w;
        }
      }
    }
    const int first = lane_ * kCells / kCopies;
    row_ = first % R, unit_ = group * U + first / R;
  }

  RNNFAST_DEVICE int row(int j) const { return row_ + j; }
  RNNFAST_DEVICE int unit() const { return unit_; }
  RNNFAST_DEVICE bool owns() const { return lane_ % kCopies == 0; }

  RNNFAST_DEVICE void multiply(const uint4* state) {
    float sums[kSums];
    state += lane_;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      uint4 h[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        h[v] = state[r * kStride + v * Q];
      }
#pragma unroll
      for (int u = 0; u < U; ++u) {
        float even = 0, odd = 0; // two chains of additions
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const uint4 w = v < kHeld ? weights_[u][min(v, kHeld - 1)]
                                    : shared_[((v - kHeld) * U + u) * kThreads];
          even = fmaf(device::float_of(h[v].x), device::float_of(w.x), even);
          odd = fmaf(device::float_of(h[v].y), device::float_of(w.y), odd);
          even = fmaf(device::float_of(h[v].z), device::float_of(w.z), even);
          odd = fmaf(device::float_of(h[v].w), device::float_of(w.w), odd);
        }
        sums[u * R + r] = even + odd;
      }
    }
    reduce<kSums, Q / 2>(sums);
#pragma unroll
    for (int j = 0; j < kCells; ++j) {
      sums_[j] = sums[j];
    }
  }

  RNNFAST_DEVICE void sum(int j, Sum (&to)[kUnits]) const { to[0] = sums_[j]; }

  // These have the same meaning as in MatrixProduct. Copies of a sum also take a share.
  static constexpr int kSharers = 4 * kCopies; // where U is 4
  static constexpr int kLow = Q / 4, kHigh = Q / 2;
  RNNFAST_DEVICE int sharer() const { return lane_ / kLow * kCopies + lane_ % kCopies; }

private:
  // Keeps half of the Count sums, which half depends on the bit `Mask` of the lane, and sends the
  // rest.
  template <int Count, int Mask> RNNFAST_DEVICE void reduce(float* sums) const {
    if constexpr (Mask >= 1) {
      if constexpr (Count > 1) {
        const bool upper = (lane_ & Mask) != 0;
#pragma unroll
        for (int i = 0; i < Count / 2; ++i) {
          const float kept = upper ? sums[i + Count / 2] : sums[i];
          const float given = upper ? sums[i] : sums[i + Count / 2];
          sums[i] = kept + device::shuffle_xor(given, Mask);
        }
        reduce<Count / 2, Mask / 2>(sums);
      } else {
        sums[0] += device::shuffle_xor(sums[0], Mask);
        reduce<1, Mask / 2>(sums);
      }
    }
  }

  static constexpr int kHeld = V - S; // in registers

  uint4 weights_[U][kHeld];
  uint4* const shared_;
  float sums_[kCells];
  int lane_, row_, unit_;
};

} // namespace rnnfast::cuda
