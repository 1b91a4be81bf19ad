// The contract of GloVe (Pennington, Socher & Manning 2014), which learns word vectors from counts
// of co-occurrences: one epoch of AdaGrad on
//
//   J = sum_n weight_n (w_i . c_j + b_i + d_j - log_x_n)^2,   i = row_n, j = column_n
//
// Each word i has a vector w_i and a bias b_i, each context j a vector c_j and a bias d_j. An entry
// n uses half of its gradient, as the authors' code does. With
//
//   g = weight (w . c + b + d - log_x)
//
// and the sums of squares s so far, each element of w becomes w - lr g c / sqrt(s), and then s
// grows by (g c)^2. The other parameters are updated in the same way.
//
// Threads. Words and contexts are divided into P blocks each, and entry n belongs to block
// (i mod P, j mod P). A round processes the P blocks of entries (p, (p + shift) mod P), which have
// neither a word nor a context in common, and the threads share these blocks. So two threads never
// write the same vector, the result does not depend on the number of threads, and the vectors of a
// block stay in cache.
//
// Letters: N entries, V words, D elements of a vector. Notation, checks and lifetime are those of
// rnn.h. Memory that a call writes must not overlap any other memory of the call.
#pragma once

#include <cstdint>

namespace rnnfast {

struct Glove {
  int64_t N, V, D, P;    // each at least 1
  const int64_t* starts; // [P * P + 1], read: the entries [starts[p * P + q], starts[p * P + q +
                         // 1]) belong to block (p, q). Rises from 0 to N
  const int64_t* shifts; // [P], read: the shift of each round. Contains each of 0 .. P - 1 once
  const int64_t* row;    // [N], read: the word of each entry, in [0, V)
  const int64_t* column; // [N], read: the context of each entry, in [0, V)
  const float* log_x;    // [N], read: the logarithm of each count
  const float* weight;   // [N], read
  float* words;          // [V, 2, D + 1], updated: w and b of a word, then their sums of squares,
                         // which must be positive
  float* contexts;       // [V, 2, D + 1], updated: c and d of a context, then their sums of squares
  float lr;              // the learning rate
  int threads;           // the most threads that may run
};

// Return J, in which each term has its value from before the update by its entry.
//
// Errors, before anything is written:
// - std::invalid_argument: `starts` or `shifts` is not as described above.
// - std::out_of_range: a word or a context is not in [0, V) or not in the block of its entry.
double glove_epoch(const Glove&);

} // namespace rnnfast
