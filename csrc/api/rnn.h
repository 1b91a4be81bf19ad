// The contract of the recurrence on the CPU, forward and backward through time:
//
//   h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh),   f = tanh or ReLU            (Elman 1990)
//
// The letters mean the same in all of csrc: T time steps, B rows of the batch (one sequence each),
// I input size, H hidden size, L layers, D directions.
//
// Notation. [H, I] is a matrix of H rows and I columns that is stored row by row without gaps.
// T x B x I is a Sequence, whose strides are given. Every element has the type T of the struct.
//
// Checks. The caller checks shapes, strides and dtypes. The kernels trust their arguments, except
// for the errors that are listed at the functions.
// Aliasing. Memory that a call writes must not overlap any other memory of the call. The comment of
// `forward` and `backward` lists the exceptions between the layers of a stack.
// Lifetime. The pointers are used during the call only. The calling thread keeps up to 64 MiB of
// work space for its next call.
// Threads. A call may be made from any thread. Its results do not depend on the number of threads,
// bit for bit.
#pragma once

#include <cstdint>

#include "element.h"
#include "gated.h"
#include "leaky.h"

namespace rnnfast {

// A matrix of T x B rows. Row b of time step t begins at data + t * step + b * row; both strides
// count elements. The elements of a row are adjacent. Time-major, batch-first and one half of a
// bidirectional output differ in their strides only.
//
// A packed batch (Shape::batch_sizes != nullptr) has batch_sizes[t] rows at time step t. Its rows
// follow one another, time step by time step, `row` elements apart, and `step` is ignored.
template <class T> struct Sequence {
  T* data;
  int64_t step;
  int64_t row;
};

// What all layers and directions of a call have in common.
struct Shape {
  int64_t T, B, H;            // each at least 1
  const int64_t* batch_sizes; // [T], or nullptr: B rows at every time step. The list must not
                              // increase, batch_sizes[0] == B, and its last element is at least 1
  bool relu;                  // true: f is ReLU; false: f is tanh
  int threads;                // the most threads that may run; less than 1 counts as 1
  // T x B, read. Where it is true, the state of that row is zero before that time step, so that the
  // steps before and after it are independent. A direction that goes backward in time enters a
  // segment at its last step, and the state is zero there instead. data == nullptr: no resets.
  Sequence<const bool> reset{};
};

// The forward pass of one direction of one layer.
//
// One-hot input. If tokens.data is set, x_t is the unit vector of length I whose element
// tokens[t, b] is 1. W_ih x_t is then a row of `table`, and x and w_ih are not read.
template <class T> struct Forward {
  bool reverse;        // true: time step T - 1 is computed first, and each row of a packed batch
                       // begins at its own last time step
  int64_t I;           // at least 0; with tokens, the number of rows of `table`
  Sequence<const T> x; // T x B x I, read
  const T* w_ih;       // [H, I], read
  const T* w_hh;       // [H, H], read
  const T* b_ih;       // [H], read; nullptr: zeros
  const T* b_hh;       // [H], read; nullptr: zeros
  const T* h0;         // [B, H], read: the initial state; nullptr: zeros. A reset of the first time
                       // step replaces it with zeros if `reverse` is false
  Sequence<T> h;       // T x B x H, written: every state
  T* h_n;              // [B, H], written: the state that is computed last in each row; nullptr: not
                       // wanted
  Sequence<const int64_t> tokens; // T x B, each in [0, I), read; data == nullptr: x is used instead
  const T* table;                 // [I, H], read: the transposed W_ih
  const Leak<T>* leak;            // nullptr, or what makes the units leaky
  const Gates<T>* gates;          // nullptr, or what makes the units gated
};

// Back-propagation through time (Werbos 1990) of one direction of one layer. It computes the
// gradients of all inputs of Forward from the gradients dy and dh_n of its outputs. dpre_t is the
// gradient of the argument of f, and t + 1 is the time step that the forward computes after t:
//
//   dpre_t = (dy_t + W_hh^T dpre_{t+1}) * f'(h_t),   with dh_n in place of W_hh^T dpre_{T+1}
//   dh0    = W_hh^T dpre_first
//   dx_t   = W_ih^T dpre_t
//   dW_ih  = sum dpre_t x_t^T,   dW_hh = sum dpre_t h_{t-1}^T,   db = sum dpre_t
//
// Every gradient is written, not added to what is there. A gradient whose pointer is nullptr is not
// computed. x is read for dw_ih only, w_ih for dx only, and h0 for dw_hh only.
template <class T> struct Backward {
  bool reverse;         // as in the forward pass
  int64_t I;            // as in the forward pass
  Sequence<const T> h;  // T x B x H, read: what the forward pass wrote
  const T* w_hh;        // [H, H], read
  Sequence<const T> dy; // T x B x H, read: the gradient of h; data == nullptr: zeros
  const T* dh_n;        // [B, H], read: the gradient of h_n; nullptr: zeros
  T* dh0;               // [B, H], written
  Sequence<const T> x;  // T x B x I, read
  const T* w_ih;        // [H, I], read
  const T* h0;          // [B, H], read; nullptr: zeros
  Sequence<T> dx;       // T x B x I, written. Two directions of a layer have the same dx, to which
                        // the sum of their gradients is written
  T* dw_ih;             // [H, I], written
  T* dw_hh;             // [H, H], written
  T* db;                // [H], written: the gradient of b_ih, which is also that of b_hh
  Sequence<const int64_t> tokens; // T x B, each in [0, I), read. If data is set, the input is
                                  // one-hot, and x, w_ih, dx and dw_ih must not be set
  T* dtable;                      // [I, H], written: for tokens, the gradient of `table`
  const LeakBackward<T>* leak;    // nullptr, or what makes the units leaky
  const GatesBackward<T>* gates;  // nullptr, or what makes the units gated
};

// Run a stack of L layers with D = 1 or 2 directions each. stack[l * D + d] is direction d of layer
// l; layer 0 is the lowest. All layers have the same cell.
//
// `forward` goes through the layers upwards. x of a layer may be h of the layer below.
//
// `backward` goes through the layers downwards.
// - D = 1: each layer hands its dx to the layer below inside the call. dx is ignored in all layers
//   except the lowest, and dy in all layers except the highest. Every layer above the lowest needs
//   w_ih, and h must have the same strides in all layers.
// - D = 2: dy of a layer may be dx of the layer above.
//
// Errors:
// - std::out_of_range: a token is not in [0, I). Nothing has been written.
// - std::bad_alloc: there is no memory for the work space. In the group of layers that could not
//   get it nothing has been written; layers that ran before may have written their outputs.
void forward(const Shape&, int64_t L, int64_t D, const Forward<float>* stack);
void forward(const Shape&, int64_t L, int64_t D, const Forward<double>* stack);
void forward(const Shape&, int64_t L, int64_t D, const Forward<bfloat16>* stack);
void forward(const Shape&, int64_t L, int64_t D, const Forward<float16>* stack);
void backward(const Shape&, int64_t L, int64_t D, const Backward<float>* stack);
void backward(const Shape&, int64_t L, int64_t D, const Backward<double>* stack);
void backward(const Shape&, int64_t L, int64_t D, const Backward<bfloat16>* stack);
void backward(const Shape&, int64_t L, int64_t D, const Backward<float16>* stack);

} // namespace rnnfast
