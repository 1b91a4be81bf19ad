// Tests the linear layer with cross-entropy.
#include "api/loss.h"

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "support.h"

namespace {

// Compare the linear layer with cross-entropy with nested loops. The rows of x are not adjacent,
// and several sets of gradients are wanted. A target that is out of range must be refused before
// anything is written.
template <class T> void check_loss(int64_t N, int64_t H, int64_t V) {
  Random random;
  const int64_t pitch = H + 3;
  const std::vector<T> x = random.array<T>((N - 1) * pitch + H), w = random.array<T>(V * H),
                       b = random.array<T>(V, 3), dloss = random.array<T>(N);
  std::vector<int64_t> target(N);
  std::vector<double> loss(N), dx(N * H), dw(V * H), db(V);
  for (int64_t n = 0; n < N; ++n) {
    target[n] = n == 0 ? V - 1 : (n * 7919) % V;
    std::vector<double> logits(b.begin(), b.end());
    double sum = 0;
    for (int64_t v = 0; v < V; ++v) {
      for (int64_t k = 0; k < H; ++k) {
        logits[v] += double(w[v * H + k]) * double(x[n * pitch + k]);
      }
      sum += std::exp(logits[v]);
    }
    loss[n] = std::log(sum) - logits[target[n]];
    for (int64_t v = 0; v < V; ++v) {
      const double d = double(dloss[n]) * (std::exp(logits[v]) / sum - (v == target[n]));
      db[v] += d;
      for (int64_t k = 0; k < H; ++k) {
        dx[n * H + k] += d * double(w[v * H + k]);
        dw[v * H + k] += d * double(x[n * pitch + k]);
      }
    }
  }
  for (const Isa* isa : isas_to_test()) {
    set_isa(isa->name);
    const std::string name = std::string(isa->name) + " loss N=" + std::to_string(N) +
                             " H=" + std::to_string(H) + " V=" + std::to_string(V);
    std::vector<std::vector<T>> expected;
    for (int threads : thread_counts({1, 2, 3, 4})) {
      for (int wanted : {7, 0, 1, 2, 4}) {
        Guarded<T> guards[] = {Guarded<T>(N), Guarded<T>(N * H), Guarded<T>(V * H), Guarded<T>(V)};
        LinearCrossEntropy<T> call{};
        call.N = N, call.H = H, call.V = V, call.x = x.data(), call.x_row = pitch;
        call.w = w.data(), call.b = b.data(), call.target = target.data();
        call.dloss = wanted != 0 ? dloss.data() : nullptr, call.dloss_step = 1;
        call.loss = guards[0].data();
        call.dx = wanted & 1 ? guards[1].data() : nullptr;
        call.dw = wanted & 2 ? guards[2].data() : nullptr;
        call.db = wanted & 4 ? guards[3].data() : nullptr;
        call.threads = threads;
        const double total = linear_cross_entropy(call);
        const Rows rows[] = {Rows(N, 1), Rows(wanted & 1 ? N : 0, H), Rows(wanted & 2 ? V : 0, H),
                             Rows(wanted & 4 ? V : 0, 1)};
        std::vector<std::vector<T>> found;
        for (int i = 0; i < 4; ++i) {
          found.push_back(guards[i].take(rows[i], name));
        }
        if (expected.empty()) {
          compare(found[0], loss, name + " loss");
          compare(found[1], dx, name + " dx");
          compare(found[2], dw, name + " dw");
          compare(found[3], db, name + " db");
          expected = found;
        }
        double sum = 0;
        for (int i = 0; i < 4; ++i) {
          if ((i == 0 || wanted >> (i - 1) & 1) && found[i] != expected[i]) {
            fail(name + ": the bits depend on the number of threads, here " +
                 std::to_string(threads) + ", or on the gradients that are wanted");
          }
        }
        for (T l : found[0]) {
          sum += double(l);
        }
        if (sum != total) {
          fail(name + ": the return value is not the sum of the losses");
        }
      }
    }
    for (int64_t wrong : {int64_t(-1), V, std::numeric_limits<int64_t>::min()}) {
      std::vector<int64_t> targets = target;
      targets[N - 1] = wrong;
      Guarded<T> written(N);
      LinearCrossEntropy<T> call{};
      call.N = N, call.H = H, call.V = V, call.x = x.data(), call.x_row = pitch;
      call.w = w.data(), call.target = targets.data(), call.loss = written.data();
      call.threads = 1;
      try {
        linear_cross_entropy(call);
        fail(name + ": a target out of range was accepted");
      } catch (const std::out_of_range&) {
        written.take(Rows(0, 1), name);
      }
    }
  }
  set_isa("");
}

} // namespace

void test_loss() {
  check_loss<float>(1, 1, 1);
  check_loss<double>(3, 7, 17);
  check_loss<float>(5, 65, 1030);   // several slices of classes
  check_loss<double>(261, 9, 515);  // more rows than kOuterRows
  check_loss<float>(70, 3, 63'489); // two blocks of rows, the first of kLeastRows
}
