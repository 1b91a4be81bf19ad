// The contract between the kernels and whoever calls them: one plain struct a call.
//
//   h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh),   f = tanh or ReLU            (Elman 1990)
//
// Letters, fixed everywhere: T time steps, B batch rows, I input size, H hidden size.
//
// Sequences. A matrix of T x B rows is a pointer and two strides, counted in elements: row b of
// step t begins at data + t * step + b * row, and the elements of a row are adjacent. Time-major,
// batch-first and one half of a bidirectional output are all just strides.
//   A packed batch (batch_sizes != nullptr) holds batch_sizes[t] rows at step t, a non-increasing
// list with batch_sizes[0] == B; its rows follow one another, `row` apart, and `step` is ignored.
//   reverse: step T-1 is computed first. A packed row starts at its own last step.
//
// Aliasing. Nothing that is written may overlap anything else of the call, but for what the parts
// of a stack hand on to one another.
// Lifetime. The pointers are used during the call only. Work space is kept by the calling thread
// for its next call, 64 MiB at most.
//
// Threads. `threads` is the most that may run. The results do not depend on it, bit for bit.
#pragma once

#include <cstdint>

#include "element.h"

namespace rnnfast {

template <class T> struct Sequence {
  T* data;
  int64_t step;
  int64_t row;
};

struct Shape {
  int64_t T, B, H;
  const int64_t* batch_sizes; // [T], or nullptr: B rows at every step
  bool relu;                  // otherwise tanh
  int threads;
};

// One direction of one layer.
//
// One-hot input: with tokens.data set (its `row` and `step` count tokens), x_t is the tokens[t]-th
// unit vector of length I, W_ih x_t a row of `table` = W_ih^T [I, H], and x and w_ih are not read.
template <class T> struct Forward {
  bool reverse;
  int64_t I;
  Sequence<const T> x; // T x B x I
  const T* w_ih;       // [H, I]
  const T* w_hh;       // [H, H]
  const T* b_ih;       // [H], or nullptr
  const T* b_hh;       // [H], or nullptr
  const T* h0;         // [B, H], or nullptr: zeros
  Sequence<T> h;       // T x B x H, written
  T* h_n;              // [B, H], written: each row's last computed state; or nullptr
  Sequence<const int64_t> tokens;
  const T* table;
};

// Back-propagation through time (Werbos 1990), from the gradients of the outputs to all others:
//   dpre_t = (dy_t + W_hh^T dpre_{t+1}) * f'(h_t),   W_hh^T dpre_{T+1} read as dh_n
//   dh0    = W_hh^T dpre_first
//   dx_t   = W_ih^T dpre_t
//   dW_ih  = sum dpre_t x_t^T,   dW_hh = sum dpre_t h_{t-1}^T,   db = sum dpre_t
// What has a null pointer is not wanted; x and w_ih are read only for dw_ih and dx, h0 only for
// dw_hh.
template <class T> struct Backward {
  bool reverse;
  int64_t I;
  Sequence<const T> h;  // T x B x H, as the forward wrote it
  const T* w_hh;        // [H, H]
  Sequence<const T> dy; // T x B x H gradient of every output; data may be nullptr: zeros
  const T* dh_n;        // [B, H] gradient of each row's final state, or nullptr: zeros
  T* dh0;               // [B, H]
  Sequence<const T> x;  // T x B x I
  const T* w_ih;        // [H, I]
  const T* h0;          // [B, H], or nullptr: zeros
  Sequence<T> dx;       // T x B x I; two directions of a layer share it, and their sum is written
  T* dw_ih;             // [H, I]
  T* dw_hh;             // [H, H]
  T* db;                // [H], of either bias
  Sequence<const int64_t> tokens;
  T* dtable; // [I, H], for one-hot input in place of dw_ih; x, w_ih and dx do not apply
};

// A stack: layer l's direction d is stack[l * directions + d]. The forward goes through the layers
// upwards, so that x of one may be h of the one below; the backward goes downwards. With two
// directions dy of one layer may be dx of the one above. With one direction each layer hands dx on
// to the one below itself: dx of all but the lowest and dy of all but the highest do not apply,
// and h of all must have the same strides.
// Throw, before anything is written, std::bad_alloc when there is no memory for the packed weights,
// and std::out_of_range for a token that is not in [0, I).
void forward(const Shape&, int64_t layers, int64_t directions, const Forward<float>* stack);
void forward(const Shape&, int64_t layers, int64_t directions, const Forward<double>* stack);
void forward(const Shape&, int64_t layers, int64_t directions, const Forward<bfloat16>* stack);
void forward(const Shape&, int64_t layers, int64_t directions, const Forward<float16>* stack);
void backward(const Shape&, int64_t layers, int64_t directions, const Backward<float>* stack);
void backward(const Shape&, int64_t layers, int64_t directions, const Backward<double>* stack);
void backward(const Shape&, int64_t layers, int64_t directions, const Backward<bfloat16>* stack);
void backward(const Shape&, int64_t layers, int64_t directions, const Backward<float16>* stack);

} // namespace rnnfast
