// Compares the leaky recurrence with a sparse recurrent matrix with nested loops.
#include "api/reservoir.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "support.h"

namespace {

constexpr Nonlinearity kNonlinearities[] = {Nonlinearity::kTanh, Nonlinearity::kRelu,
                                            Nonlinearity::kSigmoid, Nonlinearity::kSoftplus,
                                            Nonlinearity::kLinear};

// How the entries of the matrix are distributed.
enum class Pattern {
  kRandom,   // rows of different lengths, some of which are empty
  kRegular,  // rows of equal length
  kNone,     // no entries
  kUnsorted, // like kRandom, with falling columns and with each column twice
};

template <class T> struct Sparse {
  std::vector<int64_t> starts{0}, columns;
  std::vector<T> values;

  Sparse(int64_t H, double density, Pattern pattern, Random& random) {
    const auto per_row = std::max<int64_t>(1, int64_t(density * double(H)));
    for (int64_t i = 0; i < H; ++i) {
      for (int64_t n = 0; n < H && pattern != Pattern::kNone; ++n) {
        const int64_t j = pattern == Pattern::kUnsorted ? H - 1 - n : n;
        const bool regular = (j + i) % H < per_row;
        const bool chosen = (random() + 1) / 2 < density && i % 5 != 3;
        for (int k = 0; k < (pattern == Pattern::kUnsorted ? 2 : 1); ++k) {
          if (pattern == Pattern::kRegular ? regular : chosen) {
            columns.push_back(j);
            values.push_back(from<T>(random() / std::sqrt(double(per_row))));
          }
        }
      }
      starts.push_back(int64_t(columns.size()));
    }
  }
};

// A batch-first output with gaps tests the strides, time-major inputs the usual case.
template <class T>
void check_reservoir(const char* type, int64_t T_, int64_t B, int64_t I, int64_t H, double density,
                     Pattern pattern, Nonlinearity f, bool current, bool extras) {
  Random random;
  const Sparse<T> w_hh(H, density, pattern, random);
  const std::vector<T> x = random.array<T>(T_ * B * I), w_ih = random.array<T>(H * I, 0.5),
                       bias = random.array<T>(H, 0.5), first = random.array<T>(B * H),
                       addend = random.array<T>(T_ * B * H, 0.1);
  std::vector<T> alpha = random.array<T>(H, 0.5);
  for (T& a : alpha) {
    a = T(a + T(0.5));
  }
  const std::unique_ptr<bool[]> reset(new bool[T_ * B]);
  for (int64_t i = 0; i < T_ * B; ++i) {
    reset[i] = random() < -0.6;
  }

  std::vector<double> state(B * H), expected;
  Rows rows(H + 3, T_ * (H + 3) + 1, H);
  for (int64_t t = 0; t < T_; ++t) {
    for (int64_t b = 0; b < B; ++b) {
      rows.begins.push_back(t * rows.step + b * rows.row);
      rows.size = std::max(rows.size, rows.begins.back() + H);
      double* const s = state.data() + b * H;
      std::vector<double> r(H);
      for (int64_t i = 0; i < H; ++i) {
        s[i] = extras && reset[t * B + b] ? 0 : extras && t == 0 ? double(first[b * H + i]) : s[i];
        r[i] = current ? apply(f, s[i]) : s[i];
      }
      for (int64_t i = 0; i < H; ++i) {
        double sum = extras ? double(bias[i]) + double(addend[(t * B + b) * H + i]) : 0;
        for (int64_t k = 0; k < I; ++k) {
          sum += double(w_ih[i * I + k]) * double(x[(t * B + b) * I + k]);
        }
        for (int64_t n = w_hh.starts[i]; n < w_hh.starts[i + 1]; ++n) {
          sum += double(w_hh.values[n]) * r[w_hh.columns[n]];
        }
        const double a = double(alpha[i]);
        s[i] = (1 - a) * s[i] + a * (current ? sum : apply(f, sum));
        expected.push_back(current ? apply(f, s[i]) : s[i]);
      }
    }
  }

  for (const Isa* isa : isas_to_test()) {
    set_isa(isa->name);
    const std::string name = std::string(isa->name) + " reservoir " + type +
                             " T=" + std::to_string(T_) + " B=" + std::to_string(B) +
                             " H=" + std::to_string(H) +
                             " pattern=" + std::to_string(int(pattern)) +
                             " f=" + std::to_string(int(f)) + " current=" + std::to_string(current);
    std::vector<T> of_one_thread;
    for (int threads : {1, 2, 3}) {
      for (int64_t questions : kHandOvers) {
        const typename Reservoir<T>::Weights weights{I,
                                                     H,
                                                     w_ih.data(),
                                                     extras ? bias.data() : nullptr,
                                                     alpha.data(),
                                                     int64_t(w_hh.columns.size()),
                                                     w_hh.starts.data(),
                                                     w_hh.columns.data(),
                                                     w_hh.values.data()};
        const Reservoir<T> reservoir(weights, f, current, threads);
        Guarded<T> r(rows.size), last(B * H);
        typename Reservoir<T>::Call call{};
        call.T_ = T_, call.B = B, call.x = {x.data(), B * I, I};
        call.r = {r.data(), rows.step, rows.row}, call.last = last.data();
        if (extras) {
          call.addend = {addend.data(), B * H, H}, call.reset = {reset.get(), B, 1};
          call.first = first.data();
        }
        hand_over_after(questions);
        reservoir.run(call);
        hand_over_after(INT64_MAX);
        std::vector<T> found = r.take(rows, name);
        compare(found, expected, name);
        const std::vector<T> found_last = last.take(Rows(B, H), name);
        compare(found_last, state, name + ", last state");
        found.insert(found.end(), found_last.begin(), found_last.end());
        if (of_one_thread.empty()) {
          of_one_thread = found;
        } else if (std::memcmp(found.data(), of_one_thread.data(), found.size() * sizeof(T)) != 0) {
          fail(name + ": several threads give different bits than one");
        }
      }
    }
  }
  set_isa("");
}

template <class Error> void expect_error(const std::vector<int64_t>& starts, int64_t column) {
  const std::vector<float> ones(2, 1);
  const std::vector<int64_t> columns{0, column};
  const Reservoir<float>::Weights weights{
      1, 2, ones.data(), nullptr, ones.data(), 2, starts.data(), columns.data(), ones.data()};
  try {
    Reservoir<float>(weights, Nonlinearity::kTanh, false, 1);
  } catch (const Error&) {
    return;
  }
  fail("reservoir: a matrix that is not valid was accepted");
}

template <class T> void check_type(const char* type) {
  for (Nonlinearity f : kNonlinearities) {
    for (bool current : {false, true}) {
      check_reservoir<T>(type, 1, 1, 1, 1, 1, Pattern::kRandom, f, current, true);
      check_reservoir<T>(type, 5, 2, 3, 65, 0.1, Pattern::kRandom, f, current, true);
    }
  }
  const Nonlinearity f = Nonlinearity::kTanh;
  check_reservoir<T>(type, 40, 1, 1, 600, 0.4, Pattern::kRandom, f, false, true); // shared units
  check_reservoir<T>(type, 40, 2, 1, 600, 0.4, Pattern::kRandom, f, true, true);  // both
  check_reservoir<T>(type, 40, 3, 2, 150, 0.3, Pattern::kRandom, f, true, true);  // own rows
  check_reservoir<T>(type, 3, 1, 0, 300, 0.02, Pattern::kRandom, f, false, false);
  check_reservoir<T>(type, 3, 1, 2, 300, 0.02, Pattern::kRegular, f, false, false);
  check_reservoir<T>(type, 3, 2, 1, 130, 1, Pattern::kRegular, f, true, true);
  check_reservoir<T>(type, 3, 1, 1, 7, 0, Pattern::kNone, f, false, true);
  check_reservoir<T>(type, 3, 1, 1, 200, 0.2, Pattern::kUnsorted, f, false, true);
}

} // namespace

void test_reservoir() {
  check_type<float>("float");
  check_type<double>("double");
  expect_error<std::invalid_argument>({1, 1, 2}, 1);
  expect_error<std::invalid_argument>({0, 2, 1}, 1);
  expect_error<std::invalid_argument>({0, 3, 2}, 1);
  expect_error<std::invalid_argument>({0, 1, 1}, 1);
  expect_error<std::out_of_range>({0, 1, 2}, 2);
  expect_error<std::out_of_range>({0, 1, 2}, -1);
}
