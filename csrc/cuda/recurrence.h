// The contract of the recurrence on a GPU, forward and backward through time. The letters,
// Sequence, packed batches and `reverse` are those of ../api/rnn.h. All data pointers are device
// pointers. The caller computes the products over all time steps: the input projection before, and
// dx and the gradients of the weights after.
//
//   forward    h_t = f(pre_t + b_ih + b_hh + W_hh h_{t-1})
//   backward   dpre_t = (dy_t + W_hh^T dpre_{t+1}) * f'(h_t),   dh0 = W_hh^T dpre_first
//
// Both are one loop over the time steps, in either direction. A step multiplies the state by the
// same matrix each time, adds something and applies an elementwise function. So both use the same
// names.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../api/rnn.h"

namespace rnnfast::cuda {

// The stored dtype and how it is multiplied. kTf32 is float32 that the matrix units round to 10
// bits of mantissa. `Sum` below is the dtype of the sums: double for kFloat64, otherwise float.
enum class Precision { kFloat32, kTf32, kBfloat16, kFloat16, kFloat64 };

// kCluster: a group is one block, or the blocks of a cluster, which exchange the state through
// their shared memory. kGrid: the blocks of a group exchange it through L2. Both keep W_hh on the
// chip for the whole sequence. kStep: there is one launch for each step. It runs any size.
enum class Kernel { kCluster, kGrid, kStep };
constexpr const char* kKernelNames[] = {"cluster", "grid", "step"};

// What makes the units leaky; ../api/leaky.h has the equations. Such a call has one direction,
// which is not `reverse`. The data of a Direction then have these meanings:
//
//   forward    in: W_ih x_t + n_t;  begin: r before the first step;  out: r_t;
//              end: the state after the last step
//   backward   in: dr_t;  h: r_t of a current, f(p_t) of a rate;  out: dp_t;
//              begin, end: the gradients of the state after the last step and before the first
struct Leaky {
  bool current; // true: the equation of a current; false: that of a rate
  Nonlinearity f;
  const void* alpha;            // [H]
  const void* first;            // [B, H]; forward: the state before the first step, or nullptr:
                                // zeros; backward: r before the first step, for a current only
  Sequence<const void> dstates; // T x B x H, backward pass of a current: the gradient of s_t, or
                                // data == nullptr: zeros
  void* kept;  // T x B x H, laid out as `out`, written, or nullptr: not wanted; forward: s_t of a
               // current, f(p_t) of a rate; backward: the gradient of the state
  void* carry; // [B, H] of Sum: memory for the states between steps
};

struct Problem {
  int64_t T, B, H;
  int directions;      // 1 or 2 of one layer, which run at the same time in one launch
  bool backward, relu; // without relu: tanh
  Precision precision;
  const int64_t*
      starts; // [T + 1] for a packed batch: the row at which step t begins, below 2^31; or nullptr
  // T x B, read; Shape in ../api/rnn.h says what it does. Where the first step has a reset, the
  // caller has set h0 to zero. For leaky units it has set the state to zero, and r to f of it.
  Sequence<const bool> reset{};
  const Leaky* leak = nullptr; // nullptr, or what makes the units leaky; then `relu` is ignored
};

// One direction of one layer. Rows need no alignment except that of their elements.
struct Direction {
  bool reverse;
  const void* w_hh;        // [H, H]
  Sequence<const void> in; // forward: pre, of Sum; backward: dy, or data == nullptr: zeros
  Sequence<const void> h;  // backward: what the forward wrote
  Sequence<void> out;      // written; forward: h; backward: dpre
  const void *b_ih, *b_hh; // [H], or nullptr; forward only
  const void* begin;       // [B, H], or nullptr: zeros; forward: h0; backward: dh_n
  void* end;               // [B, H], or nullptr: not wanted; forward: h_n; backward: dh0
};

// A failed call of the CUDA runtime. The message names the kernel.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// How a problem runs on the current device. The choice depends only on sizes.
struct Choice {
  Kernel kernel;
  bool torch;         // torch's own path, cuDNN, should be faster than any kernel
  size_t workspace;   // bytes of device memory that `run` needs, 16-byte aligned
  std::string reason; // one line: the choice, how the problem is cut, the predicted time
};

// Returns how a problem runs. `force` names the kernel; nullptr takes the one that should be
// fastest. If the kernel cannot run the problem, std::invalid_argument says why.
Choice choose(const Problem&, const Kernel* force);

// Two parts of a choice, for use in every call. They are found once for each shape and device.
size_t workspace(const Problem&, const Kernel* force);
bool prefers_torch(const Problem&);

// Starts the work on `stream`, a cudaStream_t of the current device, and returns. It does not
// synchronise or allocate, so it can be captured in a CUDA graph.
void run(const Problem&, const Kernel* force, const Direction* directions, void* workspace,
         void* stream);

// Writes n numbers, each in [0, 2^31), to device memory, on `stream`. The numbers are arguments of
// kernels, because a copy that is captured in a CUDA graph would read the host's memory again at
// every replay.
void upload(const int64_t* numbers, int64_t n, int64_t* to, void* stream);

} // namespace rnnfast::cuda
