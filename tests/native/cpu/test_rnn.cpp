// Compares the recurrence with nested loops, forward and backward: every instruction set of this
// CPU, every element type, every layout that the contract allows, and 1, 3 and 4 threads.
#include "api/rnn.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support.h"

namespace {

struct Case {
  int64_t T, B, I, H;
  Layout layout;
  bool reverse = false, relu = false, bias = true, h0 = true, tokens = false, resets = false;
  bool dy = true, dh_n = true;                      // which gradients are given
  bool dh0 = true, dx = true, dw = true, db = true; // which gradients are wanted

  std::string name() const {
    char text[200];
    std::snprintf(text, sizeof text,
                  "T=%d B=%d I=%d H=%d layout=%d reverse=%d relu=%d bias=%d h0=%d dy=%d dh_n=%d "
                  "dh0=%d dx=%d dw=%d db=%d tokens=%d resets=%d",
                  int(T), int(B), int(I), int(H), int(layout), reverse, relu, bias, h0, dy, dh_n,
                  dh0, dx, dw, db, tokens, resets);
    return text;
  }
};

template <class T> struct Inputs {
  std::vector<int64_t> batch_sizes;
  Rows x_rows, h_rows, token_rows;
  std::vector<T> x, w_ih, w_hh, b_ih, b_hh, h0, dy, dh_n;
  std::vector<int64_t> tokens;
  std::vector<T> table;
  std::unique_ptr<bool[]> resets; // in the rows of the tokens

  Inputs(const Case& c, Random random = {})
      : batch_sizes(batch_sizes_of(c.layout, c.T, c.B)),
        x_rows(rows_of(c.layout, batch_sizes, c.I)), h_rows(rows_of(c.layout, batch_sizes, c.H)),
        token_rows(rows_of(c.layout, batch_sizes, 1)), x(random.array<T>(x_rows.size)),
        w_ih(random.array<T>(c.H * c.I, 1 / std::sqrt(double(c.I) + 1))),
        w_hh(random.array<T>(c.H * c.H, 1 / std::sqrt(double(c.H)))), b_ih(random.array<T>(c.H)),
        b_hh(random.array<T>(c.H)), h0(random.array<T>(c.B * c.H)),
        dy(random.array<T>(h_rows.size)), dh_n(random.array<T>(c.B * c.H)), tokens(token_rows.size),
        table(c.I * c.H), resets(new bool[token_rows.size]) {
    for (int64_t i = 0; i < token_rows.size; ++i) {
      resets[i] = random() < -0.4;
    }
    for (int64_t j = 0; j < c.H; ++j) {
      for (int64_t k = 0; k < c.I; ++k) {
        table[k * c.H + j] = w_ih[j * c.I + k];
      }
    }
    for (size_t i = 0; c.tokens && i < x_rows.begins.size(); ++i) {
      if (x_rows.begins[i] >= 0) { // the input is given both as tokens and as unit vectors
        const int64_t token = int64_t((random() + 1) / 2 * double(c.I));
        tokens[token_rows.begins[i]] = token;
        std::fill_n(x.begin() + x_rows.begins[i], c.I, T{});
        x[x_rows.begins[i] + token] = from<T>(1);
      }
    }
  }
};

// The outputs and gradients, with only the rows that exist, step by step. What was not wanted is
// empty.
template <class T> struct Results {
  std::vector<T> h, h_n, dh0, dx, dw_ih, dw_hh, db, dtable;

  std::vector<std::pair<const char*, const std::vector<T>*>> all() const {
    return {{"h", &h},         {"h_n", &h_n},     {"dh0", &dh0}, {"dx", &dx},
            {"dw_ih", &dw_ih}, {"dw_hh", &dw_hh}, {"db", &db},   {"dtable", &dtable}};
  }
};

template <class T> bool same(const Results<T>& a, const Results<T>& b) {
  for (size_t i = 0; i < a.all().size(); ++i) {
    const std::vector<T>&x = *a.all()[i].second, &y = *b.all()[i].second;
    if (x.size() != y.size() ||
        (!x.empty() && std::memcmp(x.data(), y.data(), x.size() * sizeof(T)) != 0)) {
      return false;
    }
  }
  return true;
}

// The recurrence in nested loops of double. The gradients are computed from the outputs of the
// kernels, because the kernels do the same.
template <class T> class Naive {
public:
  Naive(const Case& c, const Inputs<T>& in)
      : c_(c), in_(in), h_(c.T * c.B * c.H), h0_(c.B * c.H), zero_(c.H) {
    if (c.h0) {
      std::transform(in.h0.begin(), in.h0.end(), h0_.begin(), value_of);
    }
    for (int64_t b = 0; b < c.B; ++b) {
      lengths_.push_back(std::count_if(in.batch_sizes.begin(), in.batch_sizes.end(),
                                       [b](int64_t rows) { return rows > b; }));
    }
    for (int64_t b = 0; b < c.B; ++b) {
      for (int64_t i = 0; i < lengths_[b]; ++i) {
        const T* const x = in.x.data() + in.x_rows.begins[time(b, i) * c.B + b];
        const double* const state = before(b, i);
        for (int64_t j = 0; j < c.H; ++j) {
          double pre = c.bias ? value(in.b_ih[j]) + value(in.b_hh[j]) : 0;
          for (int64_t k = 0; k < c.I; ++k) {
            pre += value(in.w_ih[j * c.I + k]) * value(x[k]);
          }
          for (int64_t k = 0; k < c.H; ++k) {
            pre += value(in.w_hh[j * c.H + k]) * state[k];
          }
          h_[at(time(b, i), b) + j] = c.relu ? std::max(pre, 0.0) : std::tanh(pre);
        }
      }
    }
  }

  std::vector<double> outputs() const { return existing(h_, c_.H); }

  Results<double> gradients(const std::vector<T>& h) {
    for (int64_t t = 0, begin = 0; t < c_.T; ++t) {
      const int64_t n = in_.batch_sizes[t] * c_.H;
      std::transform(h.begin() + begin, h.begin() + begin + n, h_.begin() + at(t, 0), value_of);
      begin += n;
    }
    Results<double> r;
    std::vector<double> dpre(h_.size()), dx(c_.T * c_.B * c_.I);
    r.dh0.resize(c_.B * c_.H);
    r.dw_ih.resize(c_.H * c_.I);
    r.dw_hh.resize(c_.H * c_.H);
    r.db.resize(c_.H);
    for (int64_t b = 0; b < c_.B; ++b) {
      std::vector<double> dstate(c_.H);
      for (int64_t j = 0; c_.dh_n && j < c_.H; ++j) {
        dstate[j] = value(in_.dh_n[b * c_.H + j]);
      }
      for (int64_t i = lengths_[b] - 1; i >= 0; --i) {
        const int64_t here = at(time(b, i), b), slot = time(b, i) * c_.B + b;
        const double* const state = before(b, i);
        for (int64_t j = 0; j < c_.H; ++j) {
          const double y = h_[here + j];
          const double dy = c_.dy ? value(in_.dy[in_.h_rows.begins[slot] + j]) : 0;
          dpre[here + j] = (dy + dstate[j]) * (c_.relu ? double(y > 0) : 1 - y * y);
        }
        std::fill(dstate.begin(), dstate.end(), 0);
        for (int64_t j = 0; j < c_.H; ++j) {
          const double d = dpre[here + j];
          for (int64_t k = 0; k < c_.H; ++k) {
            dstate[k] += d * value(in_.w_hh[j * c_.H + k]);
            r.dw_hh[j * c_.H + k] += d * state[k];
          }
          for (int64_t k = 0; k < c_.I; ++k) {
            dx[slot * c_.I + k] += d * value(in_.w_ih[j * c_.I + k]);
            r.dw_ih[j * c_.I + k] += d * value(in_.x[in_.x_rows.begins[slot] + k]);
          }
          r.db[j] += d;
        }
        if (is_reset(b, i)) {
          std::fill(dstate.begin(), dstate.end(), 0);
        }
      }
      std::copy(dstate.begin(), dstate.end(), r.dh0.begin() + b * c_.H);
    }
    r.dtable.resize(c_.I * c_.H);
    for (int64_t j = 0; j < c_.H; ++j) {
      for (int64_t k = 0; k < c_.I; ++k) {
        r.dtable[k * c_.H + j] = r.dw_ih[j * c_.I + k];
      }
    }
    for (int64_t b = 0; b < c_.B; ++b) {
      const auto last = h_.begin() + at(time(b, lengths_[b] - 1), b);
      r.h_n.insert(r.h_n.end(), last, last + c_.H);
    }
    r.dx = existing(dx, c_.I);
    return r;
  }

private:
  static double value_of(T v) { return value(v); }
  // The time step that is computed i-th for row b.
  int64_t time(int64_t b, int64_t i) const { return c_.reverse ? lengths_[b] - 1 - i : i; }
  int64_t at(int64_t t, int64_t b) const { return (t * c_.B + b) * c_.H; }
  // Whether the state of row b is reset before its i-th computed step. In reverse, a reset concerns
  // the step that is computed after its own.
  bool is_reset(int64_t b, int64_t i) const {
    if (!c_.resets || (c_.reverse && i == 0)) {
      return false;
    }
    const int64_t t = c_.reverse ? time(b, i) + 1 : time(b, i);
    return in_.resets[in_.token_rows.begins[t * c_.B + b]];
  }
  // The state of row b before its i-th computed step.
  const double* before(int64_t b, int64_t i) const {
    return is_reset(b, i) ? zero_.data()
           : i > 0        ? h_.data() + at(time(b, i - 1), b)
                          : h0_.data() + b * c_.H;
  }
  std::vector<double> existing(const std::vector<double>& all, int64_t width) const {
    std::vector<double> v;
    for (int64_t t = 0; t < c_.T; ++t) {
      const auto begin = all.begin() + t * c_.B * width;
      v.insert(v.end(), begin, begin + in_.batch_sizes[t] * width);
    }
    return v;
  }

  const Case& c_;
  const Inputs<T>& in_;
  std::vector<int64_t> lengths_; // the time steps of each row
  std::vector<double> h_, h0_, zero_;
};

template <class T>
Results<T> run(const Case& c, const Inputs<T>& in, int threads, const std::string& name) {
  const Rows &rows = in.h_rows, &x_rows = in.x_rows;
  const Rows states(c.B, c.H), matrix_ih(c.H, c.I), matrix_hh(c.H, c.H), vector(1, c.H),
      matrix_table(c.I, c.H);
  Guarded<T> h(rows.size), h_n(states.size), dh0(states.size), dx(x_rows.size);
  Guarded<T> dw_ih(matrix_ih.size), dw_hh(matrix_hh.size), db(vector.size),
      dtable(matrix_table.size);
  Shape shape{c.T,    c.B,    c.H, is_packed(c.layout) ? in.batch_sizes.data() : nullptr,
              c.relu, threads};
  if (c.resets) {
    shape.reset = {in.resets.get(), in.token_rows.step, in.token_rows.row};
  }

  Forward<T> f{};
  f.reverse = c.reverse, f.I = c.I;
  if (c.tokens) {
    f.tokens = {in.tokens.data(), in.token_rows.step, in.token_rows.row}, f.table = in.table.data();
  } else {
    f.x = {in.x.data(), x_rows.step, x_rows.row}, f.w_ih = in.w_ih.data();
  }
  f.w_hh = in.w_hh.data();
  f.b_ih = c.bias ? in.b_ih.data() : nullptr, f.b_hh = c.bias ? in.b_hh.data() : nullptr;
  f.h0 = c.h0 ? in.h0.data() : nullptr;
  f.h = {h.data(), rows.step, rows.row};
  f.h_n = h_n.data();
  forward(shape, 1, 1, &f);

  Results<T> results;
  results.h = h.take(rows, name + " h");
  results.h_n = h_n.take(states, name + " h_n");
  // The outputs are copied to a block of exactly their size, because the backward pass reads them.
  const std::vector<T> outputs(h.data(), h.data() + rows.size);
  Backward<T> g{};
  g.reverse = c.reverse, g.I = c.I;
  g.h = {outputs.data(), rows.step, rows.row};
  g.x = f.x, g.w_ih = f.w_ih, g.tokens = f.tokens, g.w_hh = f.w_hh, g.h0 = f.h0;
  g.dy = {c.dy ? in.dy.data() : nullptr, rows.step, rows.row};
  g.dh_n = c.dh_n ? in.dh_n.data() : nullptr;
  g.dh0 = c.dh0 ? dh0.data() : nullptr;
  g.dx = {c.dx ? dx.data() : nullptr, x_rows.step, x_rows.row};
  g.dw_ih = c.dw && !c.tokens ? dw_ih.data() : nullptr;
  g.dtable = c.dw && c.tokens ? dtable.data() : nullptr;
  g.dw_hh = c.dw ? dw_hh.data() : nullptr;
  g.db = c.db ? db.data() : nullptr;
  backward(shape, 1, 1, &g);

  if (c.dh0) {
    results.dh0 = dh0.take(states, name + " dh0");
  }
  if (c.dx) {
    results.dx = dx.take(x_rows, name + " dx");
  }
  if (c.dw) {
    if (c.tokens) {
      results.dtable = dtable.take(matrix_table, name + " dtable");
    } else {
      results.dw_ih = dw_ih.take(matrix_ih, name + " dw_ih");
    }
    results.dw_hh = dw_hh.take(matrix_hh, name + " dw_hh");
  }
  if (c.db) {
    results.db = db.take(vector, name + " db");
  }
  return results;
}

template <class T> void check(const Case& c, const char* type) {
  const Inputs<T> in(c);
  Naive<T> naive(c, in);
  const std::vector<double> outputs = naive.outputs();
  for (const Isa* isa : isas_to_test()) {
    set_isa(isa->name);
    const std::string name = std::string(isa->name) + " " + type + " " + c.name();
    const Results<T> one = run(c, in, 1, name);
    compare(one.h, outputs, name + " h");
    const Results<double> gradients = naive.gradients(one.h);
    for (size_t i = 1; i < one.all().size(); ++i) {
      const auto [what, found] = one.all()[i];
      if (!found->empty()) {
        compare(*found, *gradients.all()[i].second, name + " " + what);
      }
    }
    for (int threads : thread_counts({3, 4})) { // unequal shares, and groups of several threads
      if (!same(run(c, in, threads, name), one)) {
        fail(name + ": " + std::to_string(threads) + " threads give other bits than one");
      }
    }
  }
  set_isa("");
}

// Several threads call the kernels at the same time, and each call has threads of its own.
void check_concurrent_calls(const Case& c) {
  const Inputs<float> in(c);
  const Results<float> expected = run(c, in, 1, "alone");
  std::vector<std::thread> callers;
  std::vector<char> equal(3);
  for (size_t i = 0; i < equal.size(); ++i) {
    callers.emplace_back([&, i] { equal[i] = same(run(c, in, 2, "concurrent"), expected); });
  }
  for (std::thread& caller : callers) {
    caller.join();
  }
  if (std::count(equal.begin(), equal.end(), 0) > 0) {
    fail("calls from several threads at the same time change the results");
  }
}

// The forward and the backward pass must refuse a token that is out of range before they write.
void check_wrong_tokens() {
  Case c{3, 2, 5, 7, Layout::kTime};
  c.tokens = true, c.dx = false;
  for (int64_t wrong : {int64_t(-1), int64_t(5), std::numeric_limits<int64_t>::min()}) {
    Inputs<float> in(c);
    in.tokens[5] = wrong;
    Guarded<float> written(6 * c.H);
    const Rows nothing(0, c.H);
    const Shape shape{c.T, c.B, c.H, nullptr, false, 1};
    Forward<float> f{};
    f.I = c.I, f.w_hh = in.w_hh.data(), f.table = in.table.data();
    f.tokens = {in.tokens.data(), in.token_rows.step, in.token_rows.row};
    f.h = {written.data(), in.h_rows.step, in.h_rows.row};
    Backward<float> g{};
    g.I = c.I, g.dw_hh = written.data(), g.w_hh = in.w_hh.data(), g.tokens = f.tokens;
    g.h = {in.dy.data(), in.h_rows.step, in.h_rows.row};
    for (bool back : {false, true}) {
      try {
        back ? backward(shape, 1, 1, &g) : forward(shape, 1, 1, &f);
      } catch (const std::out_of_range&) {
        written.take(nothing, "a call with a wrong token");
        continue;
      }
      fail("a token out of range was accepted");
    }
  }
}

} // namespace

int test_rnn() {
  check_wrong_tokens();
  // clang-format off
  const int64_t sizes[][4] = {
      // T, B, I, H
      {1, 1, 1, 1},
      {1, 3, 21, 37},
      {3, 2, 5, 7},
      {2, 3, 0, 3},
      {4, 5, 9, 16},
      {3, 13, 4, 33},
      {2, 33, 3, 65},
      {3, 7, 64, 129},
      {2, 400, 3, 60},  // a thread has more rows than a block of input projections
      {40, 1, 3, 257},  // one row, whose columns the threads divide
      {23, 13, 3, 200}, // several groups of several threads, over more than one block of steps
  };
  // clang-format on
  int cases = 0;
  for (const auto& [T, B, I, H] : sizes) {
    for (Layout layout : kLayouts) {
      // The options take each of their values many times, but not in all combinations.
      const unsigned bits = 0x9E3779B9u * unsigned(++cases);
      const auto bit = [bits](int i) { return (bits >> (31 - i) & 1) != 0; };
      Case c{T, B, I, H, layout};
      c.reverse = bit(0), c.relu = bit(1), c.bias = bit(2), c.h0 = bit(3);
      c.dy = bit(4), c.dh_n = bit(5);
      c.tokens = I > 0 && bit(11);
      c.resets = bit(12);
      c.dh0 = bit(6), c.dx = !c.tokens && bit(7), c.dw = bit(9), c.db = bit(10);
      check<float>(c, "float");
      // The other types take turns. The tests in Python check the results of all types; this test
      // checks what memory the kernels touch.
      switch (bits % 3) {
      case 0:
        check<double>(c, "double");
        break;
      case 1:
        check<bfloat16>(c, "bfloat16");
        break;
      default:
        check<float16>(c, "float16");
      }
    }
  }
  check_concurrent_calls({4, 9, 5, 130, Layout::kTime});
  return cases;
}
