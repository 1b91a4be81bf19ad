// The output layer of a classifier and its loss in one: a linear map and the cross-entropy of its
// softmax, without ever holding all logits.
//
//   logits_n = W x_n + b,   loss_n = log sum_v exp logits_n[v] - logits_n[target_n]
//
// and, for given gradients dloss_n of the losses, with dlogits_n = dloss_n (softmax(logits_n) -
// e(target_n)), where e(v) is the v-th unit vector:
//
//   dx_n = W^T dlogits_n,   dW = sum_n dlogits_n x_n^T,   db = sum_n dlogits_n
//
// Letters: N rows, H features, V classes. Nothing that is written may overlap anything else of the
// call. Pointers, work space and threads as in rnn.h.
#pragma once

#include <cstdint>

namespace rnnfast {

template <class T> struct LinearCrossEntropy {
  int64_t N, H, V; // each at least 1
  const T* x;      // [N, H], `x_row` from row to row
  int64_t x_row;
  const T* w;            // [V, H]
  const T* b;            // [V], or nullptr
  const int64_t* target; // [N]
  const T* dloss;        // [N], `dloss_step` apart, 0 for the same; read only for the gradients
  int64_t dloss_step;
  T* loss; // [N], written
  T* dx;   // [N, H], written, or nullptr: not wanted; these two too
  T* dw;   // [V, H]
  T* db;   // [V]
  int threads;
};

// Returns the sum of the losses. Throws, before anything is written, std::bad_alloc when there is
// no memory for the work space, and std::out_of_range for a target that is not in [0, V).
double linear_cross_entropy(const LinearCrossEntropy<float>&);
double linear_cross_entropy(const LinearCrossEntropy<double>&);

} // namespace rnnfast
