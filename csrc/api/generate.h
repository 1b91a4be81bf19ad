// Text from an RNN language model: the loop from token to token, and what a token is drawn from.
//
//   h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), layer upon layer,   f = tanh or ReLU
//   p(next token) = softmax((W_out h_t + b_out) / temperature)
//
// Letters as in rnn.h: H hidden size, L layers, V vocabulary. Matrices are dense, row by row.
//
// Lifetime. The weights are read by the constructor only; a Sampler has its own copy of them, for
// the instruction set in use at that moment. A call at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace rnnfast {

struct LanguageModel {
  struct LayerWeights {
    const float* w; // the first [H, H]: W_hh; the others [H, 2 H]: a row of W_hh, then one of W_ih
    const float* b; // [H]: b_ih + b_hh
  };
  int64_t V, H;
  bool relu;                        // otherwise tanh
  const float* table;               // [V, H]: W_ih x of the first layer, for every token
  const float* decoder_w;           // [V, H]
  const float* decoder_b;           // [V]; minus infinity bans a token
  std::vector<LayerWeights> layers; // [L]
};

// A token is drawn from the `top_k` most probable ones, and of those from the fewest whose share
// of their probability reaches `top_p` (nucleus sampling, Holtzman et al. 2020). Of equally
// probable tokens the lower number goes first.
struct Sampling {
  double temperature; // at least 0; 0: the most probable token
  int64_t top_k;      // at least 1; V or more: all
  double top_p;       // in (0, 1]; 1: all
  int64_t stop;       // a token to stop after, or -1
  uint64_t seed;
};

class Sampler {
public:
  // The state is zero. `generate` runs on up to `threads` threads, fewer where that is faster; the
  // tokens do not depend on it. Throws std::bad_alloc when there is no memory for the copy.
  Sampler(const LanguageModel&, const Sampling&, int threads);
  ~Sampler();

  // Reads tokens [n]. Throws std::out_of_range for one that is not in [0, V), before the first.
  void feed(const int64_t* tokens, int64_t n);

  // Writes up to n tokens to `tokens` [n], reads each, and returns how many: fewer only after
  // `stop` and before logits with a NaN or no finite maximum, for which std::overflow_error is
  // thrown once they come first. The tokens do not depend on how many a call asks for.
  int64_t generate(int64_t n, int64_t* tokens);

private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

} // namespace rnnfast
