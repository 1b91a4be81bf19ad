// The contract of the last layer of a classifier and its loss: a linear map and the cross-entropy
// of its softmax in one call, which never holds all logits at a time.
//
//   logits_n = W x_n + b,   loss_n = log sum_v exp logits_n[v] - logits_n[target_n]
//
// The call can also compute the gradients for given gradients dloss_n of the losses. With the
// v-th unit vector e(v) and dlogits_n = dloss_n (softmax(logits_n) - e(target_n)) they are
//
//   dx_n = W^T dlogits_n,   dW = sum_n dlogits_n x_n^T,   db = sum_n dlogits_n
//
// Letters: N rows, H features, V classes. Notation, checks, lifetime and threads are those of
// rnn.h. Memory that a call writes must not overlap any other memory of the call.
#pragma once

#include <cstdint>

namespace rnnfast {

template <class T> struct LinearCrossEntropy {
  int64_t N, H, V;       // each at least 1
  const T* x;            // N rows of H adjacent elements, read
  int64_t x_row;         // elements from one row of x to the next
  const T* w;            // [V, H], read
  const T* b;            // [V], read; nullptr: zeros
  const int64_t* target; // [N], each in [0, V), read
  const T* dloss;        // N elements, read if a gradient is wanted
  int64_t dloss_step;    // elements from one dloss to the next; 0: all rows share one dloss
  T* loss;               // [N], written
  T* dx;                 // [N, H], written; nullptr: not wanted
  T* dw;                 // [V, H], written; nullptr: not wanted
  T* db;                 // [V], written; nullptr: not wanted
  int threads;           // the most threads that may run; less than 1 counts as 1
};

// Return the sum of the N losses.
//
// Errors, before anything is written:
// - std::out_of_range: a target is not in [0, V).
// - std::bad_alloc: there is no memory for the work space.
double linear_cross_entropy(const LinearCrossEntropy<float>&);
double linear_cross_entropy(const LinearCrossEntropy<double>&);

} // namespace rnnfast
