// What makes the units of a recurrent layer leaky. The functions `forward` and `backward` of rnn.h
// run such a layer if Forward::leak or Backward::leak is set. With the leak rate alpha of each unit
// and its noise n_t, there are two kinds:
//
//   rate:     r_t = (1 - alpha) r_{t-1} + alpha f(p_t)
//   current:  s_t = (1 - alpha) s_{t-1} + alpha p_t,   r_t = f(s_t)
//   both:     p_t = W_ih x_t + b_ih + W_hh r_{t-1} + b_hh + n_t
//
// These are Euler steps of the continuous-time networks of computational neuroscience (Song et al.
// 2016, doi:10.1371/journal.pcbi.1004792). The state is r for a rate and s for a current. The
// output h of rnn.h is r in both cases, and h0, h_n and their gradients are those of the state. A
// reset makes the state zero, so that r becomes f(0) for a current.
//
// A call has one layer and one direction, which is not `reverse`. Shape::relu is ignored.
#pragma once

#include <cstdint>

#include "element.h"

namespace rnnfast {

template <class T> struct Sequence;

enum class Nonlinearity { kTanh, kRelu, kSigmoid, kSoftplus, kLinear };

template <class T> struct Leak {
  bool current; // true: the equation of a current; false: that of a rate
  Nonlinearity f;
  const T* alpha;          // [H], read; each in (0, 1]
  Sequence<const T> noise; // T x B x H, read: n_t; data == nullptr: zeros
  // If noise_scale is set, n_t is drawn: noise_scale times the random numbers that the function
  // `normal` below would write to row t * B + b of N, or to the row of a packed batch.
  const T* noise_scale; // [H], read
  uint64_t seed;
  Sequence<T> states; // T x B x H, written: s_t. Only for a current; data == nullptr: not wanted
  Sequence<T> saved;  // T x B x H, written: f(p_t) for a rate, p_t for a current. data == nullptr:
                      // not wanted. The backward pass needs it for a rate, and for dalpha
};

// The gradients beside those of Backward. One that is nullptr is not computed.
template <class T> struct LeakBackward {
  bool current;              // as in the forward pass
  Nonlinearity f;            // as in the forward pass
  const T* alpha;            // as in the forward pass
  Sequence<const T> states;  // T x B x H, read for dalpha of a current only
  Sequence<const T> saved;   // T x B x H, read: what the forward pass wrote
  Sequence<const T> dstates; // T x B x H, read: the gradient of s_t of a current; data == nullptr:
                             // zeros
  Sequence<T> dnoise;        // T x B x H, written: the gradient of n_t
  T* dalpha; // [H], written, without what passes through noise_scale, which may depend on alpha
};

// Write rows of numbers that are distributed normally with mean 0 and variance 1. Number c of row r
// depends on `seed`, r, c and N only, up to rounding. It comes from block q = r ceil(N / 32) +
// floor(c / 32) of 32 numbers, which are made of the outputs 16 q to 16 q + 15 of the generator
// SplitMix64 (Steele et al. 2014) that starts from `seed`. Their 32 halves, the lower half of each
// before the upper half, are X_0 to X_15 and Y_0 to Y_15. With j = c mod 32, Box and Muller (1958):
//
//   u = (floor(X_j / 256) + 1) / 2^24,   v = Y_j / 2^32 with Y_j as a signed number
//   j < 16:  sqrt(-2 ln u) cos(2 pi v),  and the number 16 after it  sqrt(-2 ln u) sin(2 pi v)
template <class T> struct Normal {
  int64_t rows, N; // at least 0
  uint64_t seed;
  T* out;      // [rows, N], written
  int threads; // the most threads that may run; less than 1 counts as 1
};

// These functions report no errors.
void normal(const Normal<float>&);
void normal(const Normal<double>&);
void normal(const Normal<bfloat16>&);
void normal(const Normal<float16>&);

} // namespace rnnfast
