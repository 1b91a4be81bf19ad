// Text generation. A token takes L + 1 products of a single row, and a draw. The time of a product
// is the time in which its weights come out of the cache. So the threads divide the columns, and
// the part of each thread stays in the cache of its core. They must meet after every product, which
// is quick unless one of the threads waits for a core.
#include "../api/generate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "parallel.h"
#include "work.h"

namespace rnnfast {
namespace {

// The number of multiply-adds per token that makes an additional thread worth its barriers.
constexpr int64_t kTokenWork = 1 << 16;

Buffer<float> copy(const float* from, int64_t count) {
  Buffer<float> to = allocate<float>(count);
  std::copy_n(from, count, to.get());
  return to;
}

// A matrix [N, K], packed as the right factor of a product.
struct PackedMatrix {
  int64_t N, K;
  Buffer<float> packed;

  PackedMatrix(const VectorKernels<float>& kernels, const float* w, int64_t N, int64_t K)
      : N(N), K(K), packed(allocate<float>(kernels.packed_size(K, N))) {
    kernels.pack(w, true, K, N, 0, N, packed.get());
  }
};

struct SamplerLayer {
  PackedMatrix w;
  Buffer<float> b; // [H]
  // What `w` multiplies: the last hidden state of this layer, [H], followed, except in layer 0, by
  // the new state of the layer below, [H]. Two buffers take turns, because a step must not
  // overwrite a state that other threads still read.
  Buffer<float> input[2];
};

struct Candidate {
  float logit, weight;
  int64_t token;
};

bool more_probable(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

double weight(std::vector<Candidate>::const_iterator first,
              std::vector<Candidate>::const_iterator last) {
  return std::accumulate(first, last, 0.0,
                         [](double sum, const Candidate& c) { return sum + c.weight; });
}

} // namespace

class Sampler::Impl {
public:
  Impl(const LanguageModel& model, const Sampling& sampling, int threads)
      : sampling_(sampling), kernels_(current_kernels<float>()), V_(model.V), H_(model.H),
        act_(model.relu ? Activation::kRelu : Activation::kTanh),
        table_(copy(model.table, V_ * H_)), decoder_w_(kernels_, model.decoder_w, V_, H_),
        decoder_b_(copy(model.decoder_b, V_)), top_(state(0)),
        logits_(allocate<float>(round_up(V_, kernels_.vector))), weights_(V_), candidates_(V_),
        random_(sampling.seed) {
    for (const LanguageModel::LayerWeights& layer : model.layers) {
      const int64_t below = layers_.empty() ? 0 : H_;
      layers_.push_back({PackedMatrix(kernels_, layer.w, H_, H_ + below),
                         copy(layer.b, H_),
                         {state(below), state(below)}});
    }
    int64_t work = V_ * H_;
    for (const SamplerLayer& layer : layers_) {
      work += layer.w.N * layer.w.K;
    }
    most_threads_ = int(std::clamp<int64_t>(work / kTokenWork, 1, std::max(threads, 1)));
  }

  void feed(const int64_t* tokens, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      if (tokens[i] < 0 || tokens[i] >= V_) {
        throw std::out_of_range("token " + std::to_string(tokens[i]) + " is not in [0, " +
                                std::to_string(V_) +
                                "), the range of the vocabulary of this model");
      }
    }
    std::for_each(tokens, tokens + n, [this](int64_t token) { now_ = read(token, now_, 0, 1); });
  }

  int64_t generate(int64_t n, int64_t* tokens) {
    int64_t count = 0;
    parallel(most_threads_, [&](int thread, int threads) {
      int now = now_;
      for (int64_t i = 0; i < n; ++i) {
        logits(thread, threads);
        if (thread == 0) {
          token_ = draw();
        }
        const bool alone = barrier_.wait_and_decide(threads);
        const int64_t token = token_;
        if (token < 0) {
          break;
        }
        now = read(token, now, thread, threads);
        if (thread == 0) {
          tokens[i] = token, now_ = now, count = i + 1;
        }
        if (token == sampling_.stop) {
          break;
        }
        if (alone) { // one thread draws the rest of the tokens
          if (thread > 0) {
            break;
          }
          threads = 1;
        }
      }
    });
    if (count == 0 && n > 0) {
      throw std::overflow_error("the logits of the next token are not finite: either the hidden "
                                "state has overflowed, or the weights are not finite");
    }
    return count;
  }

private:
  // Return a buffer of zeros that has room for `before` elements and then for the operand that a
  // product writes.
  Buffer<float> state(int64_t before) const {
    const int64_t size = before + round_up(H_, kernels_.vector);
    Buffer<float> buffer = allocate<float>(size);
    std::fill_n(buffer.get(), size, 0.0f);
    return buffer;
  }

  // Return the product of row `a` with the columns of `w` that belong to this thread.
  FusedProduct<float> thread_product(const PackedMatrix& w, const float* a, int thread,
                                     int threads) const {
    const Columns columns = columns_of(thread, threads, w.N, kernels_.panel);
    FusedProduct<float> product{};
    product.rows = 1, product.K = w.K, product.N = w.N;
    product.col_begin = columns.begin, product.col_end = columns.end;
    product.a = a, product.w = w.packed.get();
    return product;
  }

  // This thread's part of one time step of every layer. The layers read `input[now]`. Returns the
  // `now` of the next step.
  int read(int64_t token, int now, int thread, int threads) {
    for (size_t l = 0; l < layers_.size(); ++l) {
      FusedProduct<float> product =
          thread_product(layers_[l].w, layers_[l].input[now].get(), thread, threads);
      product.act = act_;
      product.sums_before = layers_[l].b.get();
      product.addend = l == 0 ? table_.get() + token * H_ : nullptr;
      product.out = layers_[l].input[1 - now].get();
      product.operand = l + 1 < layers_.size() ? layers_[l + 1].input[now].get() + H_ : top_.get();
      kernels_.fused_product(product);
      barrier_.wait(threads);
    }
    return 1 - now;
  }

  // This thread's part of the logits of the next token.
  void logits(int thread, int threads) {
    FusedProduct<float> product = thread_product(decoder_w_, top_.get(), thread, threads);
    product.act = Activation::kIdentity;
    product.sums_before = decoder_b_.get();
    product.operand = logits_.get();
    kernels_.fused_product(product);
    barrier_.wait(threads);
  }

  // Draw the next token. Returns -1 if the logits contain a NaN or their maximum is not finite.
  int64_t draw() {
    float max = -std::numeric_limits<float>::infinity();
    int64_t best = 0;
    bool nan = false;
    for (int64_t i = 0; i < V_; ++i) {
      nan |= std::isnan(logits_[i]);
      if (logits_[i] > max) {
        max = logits_[i], best = i;
      }
    }
    if (nan || std::isinf(max)) {
      return -1;
    }
    return sampling_.temperature == 0 ? best : draw_by_weight(max);
  }

  int64_t draw_by_weight(double max_logit) {
    for (int64_t i = 0; i < V_; ++i) {
      // The inverse of a tiny temperature would be infinite, so this is a division.
      weights_[i] = std::exp(static_cast<float>((logits_[i] - max_logit) / sampling_.temperature));
    }
    if (sampling_.top_k < V_ || sampling_.top_p < 1) {
      const Candidate least = least_kept();
      for (int64_t i = 0; i < V_; ++i) {
        if (more_probable(least, {logits_[i], weights_[i], i})) {
          weights_[i] = 0;
        }
      }
    }
    const double total = std::accumulate(weights_.begin(), weights_.end(), 0.0);
    const double point = static_cast<double>(random_() >> 11) * 0x1p-53 * total;
    // The token is the first one for which the sum of the weights so far is greater than the point,
    // which is less than the total.
    int64_t token = 0;
    for (double sum = weights_[0]; sum <= point && token + 1 < V_; sum += weights_[token]) {
      ++token;
    }
    return token;
  }

  // Return the least probable token that top_k and top_p keep.
  Candidate least_kept() {
    for (int64_t i = 0; i < V_; ++i) {
      candidates_[i] = {logits_[i], weights_[i], i};
    }
    auto first = candidates_.begin(), last = candidates_.end();
    if (sampling_.top_k < V_) {
      last = first + sampling_.top_k;
      std::partial_sort(first, last, candidates_.end(), more_probable); // fast for a small k
    }
    if (sampling_.top_p < 1) {
      const double total = weight(first, last);
      // All tokens whose weight is less than (1 - p) of the mean weight have less weight together
      // than top_p leaves out, so they can be removed at once. They are most of a large vocabulary.
      // Half of (1 - p) is used, so that rounding errors do not matter.
      const double low = (1 - sampling_.top_p) / 2 * total / static_cast<double>(last - first);
      last = std::partition(first, last, [low](const Candidate& c) { return c.weight >= low; });
      // The token is in [first, last), and every token before `first` is kept. Dividing the range
      // into halves again and again takes linear time.
      for (double missing = sampling_.top_p * total; last - first > 1;) {
        const auto middle = first + (last - first) / 2;
        std::nth_element(first, middle, last, more_probable);
        const double half = weight(first, middle);
        if (half < missing) {
          missing -= half, first = middle;
        } else {
          last = middle;
        }
      }
    }
    return *(last - 1);
  }

  const Sampling sampling_;
  const VectorKernels<float>& kernels_;
  const int64_t V_, H_;
  const Activation act_;
  const Buffer<float> table_; // [V, H]
  const PackedMatrix decoder_w_;
  const Buffer<float> decoder_b_; // [V]
  std::vector<SamplerLayer> layers_;
  int most_threads_;
  Barrier barrier_;
  int64_t token_ = 0; // the token that was drawn last
  int now_ = 0;       // the index of the `input` that the next step reads
  Buffer<float> top_; // the state of the last layer
  Buffer<float> logits_;
  std::vector<float> weights_; // [V], proportional to the probabilities
  std::vector<Candidate> candidates_;
  std::mt19937_64 random_; // gives the same numbers with every standard library
};

Sampler::Sampler(const LanguageModel& model, const Sampling& sampling, int threads)
    : impl_(new Impl(model, sampling, threads)) {}
Sampler::~Sampler() = default;

void Sampler::feed(const int64_t* tokens, int64_t n) { impl_->feed(tokens, n); }
int64_t Sampler::generate(int64_t n, int64_t* tokens) { return impl_->generate(n, tokens); }

} // namespace rnnfast
