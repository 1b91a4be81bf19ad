// Word vectors from co-occurrence counts (GloVe; Pennington, Socher & Manning 2014): one epoch of
// AdaGrad on
//
//   J = sum_n weight_n (w_i . c_j + b_i + d_j - log_x_n)^2,   i = row_n, j = column_n
//
// where w and b belong to words, c and d to contexts. Of one entry, half the gradient is what is
// used, as in the authors' code:  g = weight (w . c + b + d - log_x),  w -= lr g c / sqrt(s) and
// then s += (g c)^2, element by element, s being the sum of squares so far; so do the others.
//
// Threads. Words and contexts are dealt out to P blocks each, entry n belonging to block
// (i mod P, j mod P). A round takes P blocks of entries that have neither words nor contexts in
// common, (p, (p + shift) mod P) for all p, and threads share these. So no two write the same
// vector, the result does not depend on their number, and what a block needs stays in cache.
//
// Letters: N entries, V words, D elements of a vector. Matrices are dense, row by row; nothing
// overlaps.
#pragma once

#include <cstdint>

namespace rnnfast {

struct Glove {
  int64_t N, V, D, P;    // each at least 1
  const int64_t* starts; // [P * P + 1]: block (p, q) is [starts[p * P + q], starts[p * P + q + 1])
  const int64_t* shifts; // [P]: those of the rounds, each of 0 .. P - 1 once
  const int64_t* row;    // [N]
  const int64_t* column; // [N]
  const float* log_x;    // [N]
  const float* weight;   // [N]
  float* words;          // [V, 2, D + 1]: w and b, then their sums of squares; updated
  float* contexts;       // [V, 2, D + 1]: c and d, then theirs; updated
  float lr;
  int threads;
};

// Returns J, each term as it was before the update with it. Throws, before anything is written,
// std::out_of_range for an entry that is not in the block where it stands or not in [0, V), and
// std::invalid_argument for starts or shifts that are not as above.
double glove_epoch(const Glove&);

} // namespace rnnfast
