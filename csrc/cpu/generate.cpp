// Text generation. A token takes the products of the layers in token_rnn.h, one product for the
// logits, and a draw.
#include "../api/generate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "parallel.h"
#include "token_rnn.h"
#include "work.h"

namespace rnnfast {
namespace {

// The number of multiply-adds per token that makes an additional thread worth its barriers.
constexpr int64_t kTokenWork = 1 << 16;

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
        rnn_(model, kernels_), decoder_w_(kernels_, model.decoder_w, V_, H_),
        decoder_b_(widened(model.decoder_b, V_, V_)),
        logits_(allocate<float>(round_up(V_, kernels_.vector))), weights_(V_), candidates_(V_),
        random_(sampling.seed) {
    const int64_t work = V_ * H_ + rnn_.multiply_adds();
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
    std::for_each(tokens, tokens + n,
                  [this](int64_t token) { now_ = rnn_.read(token, now_, 0, 1, barrier_); });
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
        now = rnn_.read(token, now, thread, threads, barrier_);
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
  // This thread's part of the logits of the next token.
  void logits(int thread, int threads) {
    FusedProduct<float> product = decoder_w_.product(kernels_, rnn_.top(), thread, threads);
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
  TokenRnn rnn_;
  const PackedMatrix decoder_w_;
  const Buffer<float> decoder_b_; // [V]
  int most_threads_;
  Barrier barrier_;
  int64_t token_ = 0; // the token that was drawn last
  int now_ = 0;       // what the next `read` of rnn_ gets
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
