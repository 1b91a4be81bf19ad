// The recurrence on a GPU, and back through time: the contract. Letters, Sequence, packed batches
// and `reverse` as in ../rnn.h; all data pointers are device pointers. What is one big product over
// all time steps is not here: the input projection before, dx and the weight gradients after.
//
//   forward    h_t = f(pre_t + b_ih + b_hh + W_hh h_{t-1})
//   backward   dpre_t = (dy_t + W_hh^T dpre_{t+1}) * f'(h_t),   dh0 = W_hh^T dpre_first
//
// The two are one loop over the time steps, forwards or backwards: a product with a matrix that
// stays where it is, something added, an elementwise function. So they share their names here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../api/rnn.h"

namespace rnnfast::cuda {

// What is stored and how it is multiplied. kTf32 is float32 that the matrix units round to 10 bits
// of mantissa. Sums are float, of kFloat64 double: `Sum` below.
enum class Precision { kFloat32, kTf32, kBfloat16, kFloat16, kFloat64 };

// kCluster: a group is one block, or the blocks of a cluster, which exchange the state through
// their shared memory. kGrid: the blocks of a group exchange it through L2. Both keep W_hh on the
// chip for the whole sequence. kStep: a launch a step, of any size.
enum class Kernel { kCluster, kGrid, kStep };
constexpr const char* kKernelNames[] = {"cluster", "grid", "step"};

struct Problem {
  int64_t T, B, H;
  int directions;      // 1 or 2, of one layer; side by side in one launch
  bool backward, relu; // otherwise tanh
  Precision precision;
  const int64_t*
      starts; // [T + 1], of a packed batch: the row at which step t begins, below 2^31; or nullptr
};

// One direction of one layer. Rows need no alignment but that of their elements.
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

// A failed call of the CUDA runtime; the message names the kernel.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// How a problem runs on the current device: a fixed choice, from sizes alone.
struct Choice {
  Kernel kernel;
  bool torch;         // torch's own path, cuDNN, should be faster than any kernel
  size_t workspace;   // bytes of device memory that `run` needs, 16-byte aligned
  std::string reason; // one line: what was chosen, how it is cut, what that is predicted to take
};

// `force`: this kernel or std::invalid_argument that says why it cannot run this; nullptr: the one
// that should be fastest.
Choice choose(const Problem&, const Kernel* force);

// Two parts of a choice, found once for each shape and device: for every call.
size_t workspace(const Problem&, const Kernel* force);
bool prefers_torch(const Problem&);

// Starts the work on `stream`, a cudaStream_t of the current device, and returns. Does not
// synchronise or allocate, so it can be captured in a CUDA graph.
void run(const Problem&, const Kernel* force, const Direction* directions, void* workspace,
         void* stream);

// Writes n numbers, each in [0, 2^31), to device memory, on `stream`. They travel as arguments of
// kernels: a copy, captured in a CUDA graph, would read the host's memory again at every replay.
void upload(const int64_t* numbers, int64_t n, int64_t* to, void* stream);

} // namespace rnnfast::cuda
