// Tests leaky units against plain loops, and the random numbers of their noise.
#include "api/leaky.h"

#include <cmath>
#include <string>
#include <vector>

#include "api/rnn.h"
#include "support.h"

namespace {

struct Case {
  int64_t T, B, I, H;
  std::vector<int64_t> batch_sizes; // empty: B rows at every time step
  bool h0, resets, drawn;

  int64_t rows_at(int64_t t) const { return batch_sizes.empty() ? B : batch_sizes[t]; }
};

double apply_double(Nonlinearity f, double x) { return apply<double>(f, x); }

double slope(Nonlinearity f, double x) {
  switch (f) {
  case Nonlinearity::kTanh:
    return 1 - std::tanh(x) * std::tanh(x);
  case Nonlinearity::kRelu:
    return x > 0;
  case Nonlinearity::kSigmoid:
    return 1 / (2 + std::exp(x) + std::exp(-x));
  case Nonlinearity::kSoftplus:
    return 1 / (1 + std::exp(-x));
  case Nonlinearity::kLinear:
    break;
  }
  return 1;
}

using Numbers = std::vector<double>;

template <class T> Numbers numbers(const std::vector<T>& v) {
  Numbers result;
  for (const T& x : v) {
    result.push_back(value(x));
  }
  return result;
}

// The tensors of a call. Those with T in their comment have one row for each row of the batch, time
// step by time step.
template <class T> struct Data {
  std::vector<T> x, w_ih, w_hh, b, alpha, h0; // x: T
  std::vector<T> noise, dy, dstates, dh_n;    // all but dh_n: T
  std::vector<char> reset;                    // T
};

// What a call gives, and what plain loops give.
struct Results {
  Numbers h, states, saved, h_n, dx, dw_ih, dw_hh, db, dh0, dnoise, dalpha;
};

template <class T> Results plain(const Case& c, const Data<T>& data, bool current, Nonlinearity f) {
  const int64_t H = c.H, I = c.I, N = int64_t(data.x.size()) / std::max<int64_t>(I, 1);
  const Numbers x = numbers(data.x), w_ih = numbers(data.w_ih), w_hh = numbers(data.w_hh),
                b = numbers(data.b), alpha = numbers(data.alpha), h0 = numbers(data.h0),
                noise = numbers(data.noise), dy = numbers(data.dy), dstates = numbers(data.dstates),
                dh_n = numbers(data.dh_n);
  Results r;
  r.h.resize(N * H), r.states.resize(N * H), r.saved.resize(N * H), r.h_n.resize(c.B * H);
  r.dx.resize(N * I), r.dw_ih.resize(H * I), r.dw_hh.resize(H * H), r.db.resize(H);
  r.dh0.resize(c.B * H), r.dnoise.resize(N * H), r.dalpha.resize(H);
  for (int64_t row = 0; row < c.B; ++row) {
    std::vector<int64_t> at; // the rows of this sequence
    for (int64_t t = 0, start = 0; t < c.T; start += c.rows_at(t), ++t) {
      if (row < c.rows_at(t)) {
        at.push_back(start + row);
      }
    }
    const int64_t steps = int64_t(at.size());
    Numbers before(steps * H), rates(steps * H), p(steps * H);
    Numbers state(H);
    for (int64_t j = 0; j < H; ++j) {
      state[j] = h0.empty() ? 0 : h0[row * H + j];
    }
    for (int64_t t = 0; t < steps; ++t) {
      const int64_t n = at[t];
      for (int64_t j = 0; j < H; ++j) {
        before[t * H + j] = data.reset.empty() || data.reset[n] == 0 ? state[j] : 0;
        rates[t * H + j] = current ? apply_double(f, before[t * H + j]) : before[t * H + j];
      }
      for (int64_t j = 0; j < H; ++j) {
        double sum = b[j] + noise[n * H + j];
        for (int64_t k = 0; k < I; ++k) {
          sum += w_ih[j * I + k] * x[n * I + k];
        }
        for (int64_t k = 0; k < H; ++k) {
          sum += w_hh[j * H + k] * rates[t * H + k];
        }
        p[t * H + j] = sum;
        const double target = current ? sum : apply_double(f, sum);
        state[j] = (1 - alpha[j]) * before[t * H + j] + alpha[j] * target;
        r.states[n * H + j] = state[j], r.saved[n * H + j] = target;
        r.h[n * H + j] = current ? apply_double(f, state[j]) : state[j];
      }
    }
    std::copy(state.begin(), state.end(), r.h_n.begin() + row * H);
    Numbers dstate(dh_n.begin() + row * H, dh_n.begin() + (row + 1) * H), dp(H);
    for (int64_t t = steps - 1; t >= 0; --t) {
      const int64_t n = at[t];
      for (int64_t j = 0; j < H; ++j) {
        dstate[j] += current ? dy[n * H + j] * slope(f, r.states[n * H + j]) + dstates[n * H + j]
                             : dy[n * H + j];
        dp[j] = alpha[j] * dstate[j] * (current ? 1 : slope(f, p[t * H + j]));
        r.dalpha[j] += dstate[j] * (r.saved[n * H + j] - before[t * H + j]);
        r.dnoise[n * H + j] = dp[j], r.db[j] += dp[j];
        for (int64_t k = 0; k < I; ++k) {
          r.dw_ih[j * I + k] += dp[j] * x[n * I + k];
          r.dx[n * I + k] += dp[j] * w_ih[j * I + k];
        }
      }
      for (int64_t k = 0; k < H; ++k) {
        double sum = 0;
        for (int64_t j = 0; j < H; ++j) {
          sum += dp[j] * w_hh[j * H + k];
          r.dw_hh[j * H + k] += dp[j] * rates[t * H + k];
        }
        const double through = current ? sum * slope(f, before[t * H + k]) : sum;
        const bool kept = data.reset.empty() || data.reset[n] == 0;
        dstate[k] = kept ? (1 - alpha[k]) * dstate[k] + through : 0;
      }
    }
    std::copy(dstate.begin(), dstate.end(), r.dh0.begin() + row * H);
  }
  return r;
}

template <class T> void check_leaky(const char* type, const Case& c) {
  const int64_t H = c.H, I = c.I, B = c.B;
  int64_t N = 0;
  for (int64_t t = 0; t < c.T; ++t) {
    N += c.rows_at(t);
  }
  const auto steps = [&](int64_t width) { // the rows of a sequence
    Rows rows(N, width);
    rows.step = B * width;
    return rows;
  };
  Random random;
  Data<T> data;
  data.x = random.array<T>(N * I), data.w_ih = random.array<T>(H * I, 0.5);
  data.w_hh = random.array<T>(H * H, 1 / std::sqrt(double(H))), data.b = random.array<T>(H, 0.5);
  for (int64_t j = 0; j < H; ++j) {
    data.alpha.push_back(from<T>(0.55 + 0.45 * random()));
  }
  data.h0 = c.h0 ? random.array<T>(B * H) : std::vector<T>();
  data.noise = random.array<T>(N * H, 0.3), data.dy = random.array<T>(N * H);
  data.dstates = random.array<T>(N * H), data.dh_n = random.array<T>(B * H);
  for (int64_t n = 0; c.resets && n < N; ++n) {
    data.reset.push_back(random() > 0.5);
  }
  const std::vector<T> scale = random.array<T>(H, 0.3);
  constexpr uint64_t kSeed = 12345;
  const int64_t* const sizes = c.batch_sizes.empty() ? nullptr : c.batch_sizes.data();
  for (const Isa* isa : isas_to_test()) {
    set_isa(isa->name);
    if (c.drawn) {
      std::vector<T> drawn(N * H);
      normal(Normal<T>{N, H, kSeed, drawn.data(), 1});
      for (int64_t i = 0; i < N * H; ++i) {
        data.noise[i] = from<T>(value(drawn[i]) * value(scale[i % H]));
      }
    }
    for (int kind = 0; kind < 10; ++kind) {
      const bool current = kind >= 5;
      const auto f = static_cast<Nonlinearity>(kind % 5);
      const std::string name = std::string(isa->name) + " leaky " + type + " kind " +
                               std::to_string(kind) + " B=" + std::to_string(B) +
                               " H=" + std::to_string(H);
      const Results expected = plain(c, data, current, f);
      std::vector<std::vector<T>> of_one_thread;
      for (int threads : thread_counts({1, 3})) {
        for (int64_t hand_over : kHandOvers) {
          hand_over_after(hand_over);
          Shape shape{c.T, B, H, sizes, false, threads};
          if (c.resets) {
            shape.reset = {reinterpret_cast<const bool*>(data.reset.data()), B, 1};
          }
          Output<T> h(steps(H)), states(steps(H)), saved(steps(H)), h_n(Rows(B, H));
          Leak<T> leak{};
          leak.current = current, leak.f = f, leak.alpha = data.alpha.data();
          if (c.drawn) {
            leak.noise_scale = scale.data(), leak.seed = kSeed;
          } else {
            leak.noise = {data.noise.data(), B * H, H};
          }
          leak.states = current ? states.sequence() : Sequence<T>{}, leak.saved = saved.sequence();
          Forward<T> forward_call{};
          forward_call.I = I, forward_call.x = {data.x.data(), B * I, I};
          forward_call.w_ih = data.w_ih.data(), forward_call.w_hh = data.w_hh.data();
          forward_call.b_ih = data.b.data();
          forward_call.h0 = c.h0 ? data.h0.data() : nullptr;
          forward_call.h = h.sequence(), forward_call.h_n = h_n.memory.data();
          forward_call.leak = &leak;
          forward(shape, 1, 1, &forward_call);

          Output<T> dx(steps(I)), dw_ih(Rows(H, I)), dw_hh(Rows(H, H)), db(Rows(1, H)),
              dh0(Rows(B, H)), dnoise(steps(H)), dalpha(Rows(1, H));
          LeakBackward<T> gradients{};
          gradients.current = current, gradients.f = f, gradients.alpha = data.alpha.data();
          const auto read = [&](Output<T>& o) {
            return Sequence<const T>{o.memory.data(), B * H, H};
          };
          gradients.states = read(states), gradients.saved = read(saved);
          gradients.dstates = {data.dstates.data(), B * H, H};
          gradients.dnoise = dnoise.sequence(), gradients.dalpha = dalpha.memory.data();
          Backward<T> backward_call{};
          backward_call.I = I, backward_call.h = read(h), backward_call.x = forward_call.x;
          backward_call.w_ih = data.w_ih.data(), backward_call.w_hh = data.w_hh.data();
          backward_call.h0 = forward_call.h0, backward_call.dy = {data.dy.data(), B * H, H};
          backward_call.dh_n = data.dh_n.data(), backward_call.dh0 = dh0.memory.data();
          backward_call.dx = dx.sequence(), backward_call.dw_ih = dw_ih.memory.data();
          backward_call.dw_hh = dw_hh.memory.data(), backward_call.db = db.memory.data();
          backward_call.leak = &gradients;
          backward(shape, 1, 1, &backward_call);

          std::vector<std::vector<T>> found;
          const auto take = [&](Output<T>& o, const Numbers& wanted, const char* what) {
            found.push_back(o.take(name + " " + what));
            compare(found.back(), wanted, name + " " + what);
          };
          take(h, expected.h, "h"), take(saved, expected.saved, "saved");
          if (current) {
            take(states, expected.states, "states");
          }
          take(h_n, expected.h_n, "h_n"), take(dx, expected.dx, "dx");
          take(dw_ih, expected.dw_ih, "dw_ih"), take(dw_hh, expected.dw_hh, "dw_hh");
          take(db, expected.db, "db"), take(dh0, expected.dh0, "dh0");
          take(dnoise, expected.dnoise, "dnoise"), take(dalpha, expected.dalpha, "dalpha");
          if (of_one_thread.empty()) {
            of_one_thread = found;
          }
          for (size_t i = 0; i < found.size(); ++i) {
            if (std::memcmp(found[i].data(), of_one_thread[i].data(),
                            found[i].size() * sizeof(T)) != 0) {
              fail(name + ": several threads give different bits than one");
            }
          }
        }
      }
    }
  }
  hand_over_after(INT64_MAX);
  set_isa("");
}

// One row of the definition in api/leaky.h.
double number(uint64_t seed, int64_t row, int64_t c, int64_t N) {
  const uint64_t q = uint64_t(row * ((N + 31) / 32) + c / 32);
  const auto word = [&](uint64_t i) {
    uint64_t z = seed + (16 * q + i / 2 + 1) * 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    z ^= z >> 31;
    return uint32_t(i % 2 == 0 ? z : z >> 32);
  };
  const uint64_t j = uint64_t(c % 16);
  const double u = (double(word(j) >> 8) + 1) * 0x1p-24;
  const double v = double(int32_t(word(16 + j))) * 0x1p-32 * 2 * 3.14159265358979323846;
  return std::sqrt(-2 * std::log(u)) * (c % 32 < 16 ? std::cos(v) : std::sin(v));
}

template <class T> void check_normal(const char* type) {
  for (const Isa* isa : isas_to_test()) {
    set_isa(isa->name);
    for (int64_t N : {1, 7, 33, 100}) {
      const std::string name = std::string(isa->name) + " normal " + type;
      Numbers expected;
      for (int64_t r = 0; r < 3; ++r) {
        for (int64_t c = 0; c < N; ++c) {
          expected.push_back(number(99, r, c, N));
        }
      }
      for (int threads : thread_counts({1, 3})) {
        Output<T> out(Rows(3, N));
        normal(Normal<T>{3, N, 99, out.memory.data(), threads});
        compare(out.take(name), expected, name);
      }
    }
  }
  set_isa("");
}

} // namespace

void test_leaky() {
  check_normal<float>("float"), check_normal<double>("double");
  check_normal<bfloat16>("bfloat16"), check_normal<float16>("float16");
  check_leaky<float>("float", {5, 3, 4, 7, {}, true, true, false});
  check_leaky<float>("float", {4, 2, 1, 65, {}, false, false, true});
  check_leaky<float>("float", {40, 9, 3, 33, {}, true, true, true}); // several blocks of steps
  check_leaky<double>("double", {4, 5, 2, 17, {5, 5, 3, 1}, true, true, true});
  check_leaky<float>("float", {4, 5, 2, 17, {5, 4, 4, 1}, false, true, false});
  check_leaky<bfloat16>("bfloat16", {3, 4, 3, 33, {}, true, false, false});
  check_leaky<float16>("float16", {3, 4, 3, 33, {}, false, true, false});
}
