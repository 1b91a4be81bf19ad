// The contract of text generation with an RNN language model: the loop from token to token, and how
// the next token is drawn.
//
//   h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh) in every layer,   f = tanh or ReLU, or the
//         equations of a GRU or LSTM in gated.h
//   p(next token) = softmax((W_out h_t + b_out) / temperature)
//
// Letters: H hidden size, G gates (1 for plain units), L layers, V vocabulary. Notation and checks
// are those of rnn.h.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "gated.h"

namespace rnnfast {

struct LanguageModel {
  struct LayerWeights {
    const float* w_hh; // [G H, H]
    const float* w_ih; // [G H, H]; nullptr in layer 0, which has `table`
    const float* b_ih; // [G H]
    const float* b_hh; // [G H]
  };
  int64_t V, H; // each at least 1
  Cell cell;
  const float* table;               // [V, G H]: W_ih x of layer 0 for every token
  const float* decoder_w;           // [V, H]: W_out
  const float* decoder_b;           // [V]: b_out; minus infinity excludes a token
  std::vector<LayerWeights> layers; // [L], L at least 1
};

// The next token is drawn from a part of the vocabulary. `top_k` keeps the most probable tokens.
// Of these, `top_p` keeps the smallest set of the most probable tokens whose share of the
// probability reaches top_p (nucleus sampling, Holtzman et al. 2020). Of two equally probable
// tokens the one with the lower number counts as more probable.
struct Sampling {
  double temperature; // at least 0; 0: the most probable token is taken
  int64_t top_k;      // at least 1; V or more: all tokens
  double top_p;       // in (0, 1]; 1: all tokens that top_k keeps
  int64_t stop;       // a token after which `generate` stops, or -1
  uint64_t seed;      // every value is valid
};

// Generates text with one model, and keeps the state from call to call. Only one call may
// run at a time.
class Sampler {
public:
  // Copies the weights, in the layout of the instruction set that is in use at that moment; the
  // pointers are not used after the constructor. The state begins as zeros. `generate` runs
  // on up to `threads` threads, or on fewer where that is faster. The tokens do not depend on the
  // number of threads.
  //
  // Errors: std::bad_alloc if there is no memory for the copy.
  Sampler(const LanguageModel&, const Sampling&, int threads);
  ~Sampler();

  // Feed n tokens to the model. tokens: [n], read.
  //
  // Errors: std::out_of_range if a token is not in [0, V). No token has been fed then.
  void feed(const int64_t* tokens, int64_t n);

  // Draw up to n tokens, feed each to the model, and return how many were drawn. tokens: [n],
  // written. Fewer than n tokens are drawn in two cases only: after `stop`, and before logits that
  // contain a NaN or whose maximum is not finite. The tokens do not depend on how many a call asks
  // for.
  //
  // Errors: std::overflow_error if such logits come before the first token of this call.
  int64_t generate(int64_t n, int64_t* tokens);

private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

} // namespace rnnfast
