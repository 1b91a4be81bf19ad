// A token is L + 1 products of a single row and a draw. The products take the time that their
// weights take to come out of the cache, so threads share the columns: the part of each stays in
// its own cache. They have to meet after every product, which is quick, unless one of them waits
// for a core.
#include "../api/generate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "parallel.h"
#include "work.h"

namespace rnnfast {
namespace {

// Multiply-adds of a token that are worth a thread.
constexpr int64_t kTokenWork = 1 << 16;

Buffer<float> copy(const float* from, int64_t count) {
  Buffer<float> to = allocate<float>(count);
  std::copy_n(from, count, to.get());
  return to;
}

// A matrix [N, K] as the kernels take it.
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
  // What `w` multiplies: the layer's last state [H], then, but for the first layer, the state of
  // the layer below [H]. Two, in turn: a step must not overwrite what it still reads.
  Buffer<float> input[2];
};

struct Candidate {
  float logit, weight;
  int64_t token;
};

bool more_probable(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

// Whether threads shall work together on the next call, by the clock: on busy cores they are many
// times slower than one alone.
class Pace {
public:
  bool together() const { return alone_for_ == 0; }

  void took(double seconds) {
    if (alone_for_ > 0) {
      alone_ = seconds;
      --alone_for_;
    } else if (seconds > alone_) {
      alone_for_ = patience_ = std::min(2 * patience_, kMostPatience);
      together_for_ = 0;
    } else if (++together_for_ % kTimeAloneEvery == 0) {
      alone_for_ = patience_ = 1; // when one was timed the caches may have been cold
    }
  }

private:
  // Calls between tries together where those are slower, and between looks at one where not.
  static constexpr int64_t kMostPatience = 1024, kTimeAloneEvery = 64;
  int64_t alone_for_ = 1, patience_ = 1;
  int64_t together_for_ = 0;
  double alone_ = 0;
};

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
                                std::to_string(V_) + "), the vocabulary of this model");
      }
    }
    std::for_each(tokens, tokens + n, [this](int64_t token) { now_ = read(token, now_, 0, 1); });
  }

  int64_t generate(int64_t n, int64_t* tokens) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point begin = Clock::now();
    int64_t count = 0;
    parallel(pace_.together() ? most_threads_ : 1, [&](int thread, int threads) {
      int now = now_;
      for (int64_t i = 0; i < n; ++i) {
        logits(thread, threads);
        if (thread == 0) {
          token_ = draw();
        }
        barrier_.wait(threads);
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
      }
    });
    if (count == 0 && n > 0) {
      throw std::overflow_error("the logits of the next token are not finite: the hidden state has "
                                "overflowed, or the weights are not finite");
    }
    if (count > 0) {
      pace_.took(std::chrono::duration<double>(Clock::now() - begin).count() / double(count));
    }
    return count;
  }

private:
  // Zeros, for a `FusedProduct::operand` after `before` elements of something else.
  Buffer<float> state(int64_t before) const {
    const int64_t size = before + round_up(H_, kernels_.vector);
    Buffer<float> buffer = allocate<float>(size);
    std::fill_n(buffer.get(), size, 0.0f);
    return buffer;
  }

  // Of a thread's columns.
  FusedProduct<float> thread_product(const PackedMatrix& w, const float* a, int thread,
                                     int threads) const {
    const int64_t panel = kernels_.panel, panels = (w.N + panel - 1) / panel;
    FusedProduct<float> product{};
    product.rows = 1, product.K = w.K, product.N = w.N;
    product.col_begin = panels * thread / threads * panel;
    product.col_end = std::min(panels * (thread + 1) / threads * panel, w.N);
    product.a = a, product.w = w.packed.get();
    return product;
  }

  // This thread's part of one step of every layer, which reads `input[now]`; returns the next now.
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

  void logits(int thread, int threads) {
    FusedProduct<float> product = thread_product(decoder_w_, top_.get(), thread, threads);
    product.act = Activation::kIdentity;
    product.sums_before = decoder_b_.get();
    product.operand = logits_.get();
    kernels_.fused_product(product);
    barrier_.wait(threads);
  }

  // The next token, or -1 where the logits have a NaN or no finite maximum.
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
      // Divided, not multiplied by the inverse, which is infinite for a tiny temperature.
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
    int64_t token = 0; // the first with which the sum is over the point, which is below the total
    for (double sum = weights_[0]; sum <= point && token + 1 < V_; sum += weights_[token]) {
      ++token;
    }
    return token;
  }

  // The least probable token that top_k and top_p leave.
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
      // All below (1 - p) of the mean together are less than what may be left out. Most of a large
      // vocabulary is. Half of that, so that roundings do not matter.
      const double low = (1 - sampling_.top_p) / 2 * total / static_cast<double>(last - first);
      last = std::partition(first, last, [low](const Candidate& c) { return c.weight >= low; });
      // It is in [first, last), and what is before is kept: halves of halves take linear time.
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
  int most_threads_; // threads at most
  Pace pace_;
  Barrier barrier_;
  int64_t token_ = 0; // the one that was drawn
  int now_ = 0;       // which `input` the next step reads
  Buffer<float> top_; // state of the last layer
  Buffer<float> logits_;
  std::vector<float> weights_; // [V] probabilities but for a common factor
  std::vector<Candidate> candidates_;
  std::mt19937_64 random_; // the same numbers from every standard library
};

Sampler::Sampler(const LanguageModel& model, const Sampling& sampling, int threads)
    : impl_(new Impl(model, sampling, threads)) {}
Sampler::~Sampler() = default;

void Sampler::feed(const int64_t* tokens, int64_t n) { impl_->feed(tokens, n); }
int64_t Sampler::generate(int64_t n, int64_t* tokens) { return impl_->generate(n, tokens); }

} // namespace rnnfast
