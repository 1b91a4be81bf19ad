// Tests the training of GloVe vectors.
#include "api/glove.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "support.h"

namespace {

// Compare an epoch of GloVe with plain loops over the rounds, and check that wrong entries are
// refused.
void check_glove(int64_t V, int64_t D, int64_t P) {
  Random random;
  const int64_t size = V * 2 * (D + 1);
  std::vector<int64_t> starts{0}, shifts, row, column;
  for (int64_t p = 0; p < P; ++p) {
    shifts.push_back((p * 5 + 1) % P);
    for (int64_t q = 0; q < P; ++q) {
      for (int64_t i = p; i < V; i += P) {
        for (int64_t j = q; j < V; j += P) {
          if ((i * 7 + j * 5) % 3 != 1) { // a word may be its own context
            row.push_back(i), column.push_back(j);
          }
        }
      }
      starts.push_back(int64_t(row.size()));
    }
  }
  const int64_t N = int64_t(row.size());
  const std::vector<float> log_x = random.array<float>(N, 3);
  std::vector<float> weight = random.array<float>(N),
                     first[2] = {random.array<float>(size), random.array<float>(size)};
  for (float& f : weight) {
    f = std::fabs(f);
  }
  for (std::vector<float>& table : first) {
    for (int64_t i = 0; i < size; ++i) { // sums of squares begin with 1, so they are at least 1
      table[i] = i / (D + 1) % 2 == 1 ? 1 + std::fabs(table[i]) : table[i];
    }
  }
  std::vector<double> w(first[0].begin(), first[0].end()), c(first[1].begin(), first[1].end());
  const double lr = 0.0625;
  double cost = 0;
  for (int64_t shift : shifts) {
    for (int64_t p = 0; p < P; ++p) {
      const int64_t block = p * P + (p + shift) % P;
      for (int64_t n = starts[block]; n < starts[block + 1]; ++n) {
        double *const a = w.data() + row[n] * 2 * (D + 1), *const a2 = a + D + 1,
                      *const b = c.data() + column[n] * 2 * (D + 1), *const b2 = b + D + 1;
        double error = a[D] + b[D] - double(log_x[n]);
        for (int64_t d = 0; d < D; ++d) {
          error += a[d] * b[d];
        }
        const double g = double(weight[n]) * error;
        cost += g * error;
        for (int64_t d = 0; d <= D; ++d) {
          const double g_a = d < D ? g * b[d] : g, g_b = d < D ? g * a[d] : g;
          a[d] -= lr * g_a / std::sqrt(a2[d]), b[d] -= lr * g_b / std::sqrt(b2[d]);
          a2[d] += g_a * g_a, b2[d] += g_b * g_b;
        }
      }
    }
  }
  for (const Isa* isa : isas_to_test()) {
    set_isa(isa->name);
    const std::string name = std::string(isa->name) + " glove V=" + std::to_string(V) +
                             " D=" + std::to_string(D) + " P=" + std::to_string(P);
    std::vector<float> expected[2];
    for (int threads : thread_counts({1, 2, 3, 4})) {
      Guarded<float> tables[] = {Guarded<float>(size), Guarded<float>(size)};
      for (int i = 0; i < 2; ++i) {
        std::copy(first[i].begin(), first[i].end(), tables[i].data());
      }
      Glove call{N,
                 V,
                 D,
                 P,
                 starts.data(),
                 shifts.data(),
                 row.data(),
                 column.data(),
                 log_x.data(),
                 weight.data(),
                 tables[0].data(),
                 tables[1].data(),
                 float(lr),
                 threads};
      if (threads == 4) {
        std::vector<int64_t> wrong = column;
        for (int64_t value : {int64_t(-1), V, (column[N - 1] + 1) % V}) {
          wrong[N - 1] = value;
          call.column = wrong.data();
          try {
            if (value != (column[N - 1] + 1) % V || P > 1) {
              glove_epoch(call);
              fail(name + ": a column that is not in its block was accepted");
            }
          } catch (const std::out_of_range&) {
          }
        }
        call.column = column.data();
      }
      const double found_cost = glove_epoch(call);
      if (std::fabs(found_cost - cost) > 1e-4 * cost) {
        fail(name + ": the cost is " + std::to_string(found_cost) + ", expected " +
             std::to_string(cost));
      }
      for (int i = 0; i < 2; ++i) {
        const std::vector<float> found = tables[i].take(Rows(1, size), name);
        if (threads == 1) {
          compare(found, i == 0 ? w : c, name);
          expected[i] = found;
        } else if (found != expected[i]) {
          fail(name + ": " + std::to_string(threads) + " threads give other bits than one");
        }
      }
    }
  }
  set_isa("");
}

} // namespace

void test_glove() {
  check_glove(1, 1, 1);
  check_glove(7, 50, 3);
  check_glove(23, 33, 8);
}
