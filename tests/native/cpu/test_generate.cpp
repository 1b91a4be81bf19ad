// Tests the sampler of language models.
#include "api/generate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "support.h"

namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Replace h and c of a unit by the next ones. x and z are the parts of the gates that come from the
// input and from h, G of each.
void step(Cell cell, const std::vector<double>& x, const std::vector<double>& z, double& h,
          double& c) {
  switch (cell) {
  case Cell::kTanh:
    h = std::tanh(x[0] + z[0]);
    break;
  case Cell::kRelu:
    h = std::max(x[0] + z[0], 0.0);
    break;
  case Cell::kGru: {
    const double r = sigmoid(x[0] + z[0]), u = sigmoid(x[1] + z[1]);
    h = (1 - u) * std::tanh(x[2] + r * z[2]) + u * h;
    break;
  }
  case Cell::kLstm:
    c = sigmoid(x[1] + z[1]) * c + sigmoid(x[0] + z[0]) * std::tanh(x[2] + z[2]);
    h = sigmoid(x[3] + z[3]) * std::tanh(c);
  }
}

// Compare greedy tokens with nested loops, and draw tokens with every kind of filter.
void check_generate(int64_t V, int64_t H, int64_t L, Cell cell) {
  Random random;
  const int64_t G = cell == Cell::kGru ? 3 : cell == Cell::kLstm ? 4 : 1, N = G * H;
  const double scale = 1 / std::sqrt(double(H));
  const std::vector<float> table = random.array<float>(V * N, 2);
  const std::vector<float> w_hh = random.array<float>(N * H, scale),
                           w_ih = random.array<float>(N * H, scale),
                           b_ih = random.array<float>(N, 0.2), b_hh = random.array<float>(N, 0.2);
  const std::vector<float> decoder_w = random.array<float>(V * H);
  std::vector<float> decoder_b = random.array<float>(V, 0.2);
  LanguageModel model{V, H, cell, table.data(), decoder_w.data(), decoder_b.data(), {}};
  for (int64_t l = 0; l < L; ++l) {
    model.layers.push_back({w_hh.data(), l == 0 ? nullptr : w_ih.data(), b_ih.data(), b_hh.data()});
  }
  const std::vector<int64_t> prompt{0, V - 1, V / 2};
  for (const Isa* isa : isas_to_test()) {
    set_isa(isa->name);
    const std::string name = std::string(isa->name) + " generate V=" + std::to_string(V) +
                             " H=" + std::to_string(H) + " L=" + std::to_string(L) + " cell " +
                             std::to_string(int(cell));
    Sampler greedy(model, {0, V, 1, -1, 0}, 3);
    std::vector<int64_t> tokens = prompt, drawn(30);
    greedy.feed(prompt.data(), int64_t(prompt.size()));
    for (int64_t n = 0, from = 0; from < 30; from += n) {
      n = std::min<int64_t>(30 - from, n + 1);
      if (greedy.generate(n, drawn.data() + from) != n) {
        fail(name + ": the sampler gave too few tokens");
      }
    }
    tokens.insert(tokens.end(), drawn.begin(), drawn.end());
    std::vector<std::vector<double>> states(L, std::vector<double>(H)), cs = states;
    for (size_t i = 0; i + 1 < tokens.size(); ++i) {
      for (int64_t l = 0; l < L; ++l) {
        std::vector<double> next = states[l];
        for (int64_t j = 0; j < H; ++j) {
          std::vector<double> x(G), z(G);
          for (int64_t g = 0; g < G; ++g) {
            const int64_t n = g * H + j;
            x[g] = b_ih[n] + (l == 0 ? double(table[tokens[i] * N + n]) : 0), z[g] = b_hh[n];
            for (int64_t k = 0; k < H; ++k) {
              x[g] += l == 0 ? 0 : double(w_ih[n * H + k]) * states[l - 1][k];
              z[g] += double(w_hh[n * H + k]) * states[l][k];
            }
          }
          step(cell, x, z, next[j], cs[l][j]);
        }
        states[l] = next;
      }
      std::vector<double> logits(decoder_b.begin(), decoder_b.end());
      for (int64_t v = 0; v < V; ++v) {
        for (int64_t j = 0; j < H; ++j) {
          logits[v] += double(decoder_w[v * H + j]) * states[L - 1][j];
        }
      }
      const double best = *std::max_element(logits.begin(), logits.end());
      if (i + 1 >= prompt.size() && logits[tokens[i + 1]] < best - 1e-4) {
        fail(name + ": token " + std::to_string(i) + " is not the most probable");
      }
    }
    for (const Sampling& sampling :
         {Sampling{1, V, 1, -1, 1}, {2, 3, 1, -1, 2}, {5, V, 0.9, 0, 3}, {1e-300, 2, 0.5, -1, 4}}) {
      std::vector<int64_t> expected(30);
      for (int threads : thread_counts({1, 3})) {
        for (const int64_t questions : kHandOvers) {
          hand_over_after(questions);
          Sampler sampler(model, sampling, threads);
          for (int64_t n = 0; n < 30;) {
            const int64_t most = n == 0 ? 5 : 30 - n, m = sampler.generate(most, drawn.data() + n);
            n += m;
            if (m < 1 || (m < most && drawn[n - 1] != sampling.stop)) {
              fail(name + ": the sampler stopped too early");
            }
          }
          if (threads == 1) {
            expected = drawn;
          } else if (drawn != expected) {
            fail(name + ": " + std::to_string(threads) + " threads give other tokens than one");
          }
        }
      }
      hand_over_after(INT64_MAX);
      if (*std::min_element(drawn.begin(), drawn.end()) < 0 ||
          *std::max_element(drawn.begin(), drawn.end()) >= V) {
        fail(name + ": the sampler drew a token that is out of range");
      }
    }
    const std::vector<int64_t> wrong{0, V};
    try {
      greedy.feed(wrong.data(), 2);
      fail(name + ": a token out of range was accepted");
    } catch (const std::out_of_range&) {
    }
  }
  set_isa("");
  decoder_b.assign(V, -std::numeric_limits<float>::infinity());
  try {
    Sampler(model, {1, V, 1, -1, 0}, 1).generate(30, std::vector<int64_t>(30).data());
    fail("the sampler drew a token although every token is excluded");
  } catch (const std::overflow_error&) {
  }
}

} // namespace

void test_generate() {
  check_generate(1, 1, 1, Cell::kTanh);
  check_generate(65, 33, 1, Cell::kRelu);
  check_generate(17, 7, 3, Cell::kTanh);
  check_generate(300, 261, 2, Cell::kTanh); // large enough for several threads
  for (const Cell cell : {Cell::kGru, Cell::kLstm}) {
    check_generate(1, 1, 1, cell);
    check_generate(17, 7, 3, cell);
    check_generate(100, 131, 2, cell);
  }
}
