// Compares the kernels with plain nested loops, without torch or Python, so that the sanitizers can
// watch them. The recurrence is tested with every instruction set of this CPU, every element type,
// every layout that the contract allows, and 1, 3 and 4 threads. The sampler of language models,
// the linear layer with cross-entropy, dropout and GloVe follow.
//
// Inputs lie in blocks of exactly their size, so that AddressSanitizer sees a read past the end.
// Outputs lie between guards, and every byte that the contract does not let the kernels write must
// stay as it was.
#include "api/dropout.h"
#include "api/generate.h"
#include "api/glove.h"
#include "api/loss.h"
#include "api/rnn.h"
#include "cpu/work.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace rnnfast;

namespace {

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "FAILED: %s\n", message.c_str());
  std::exit(1);
}

// `value` converts an element of any type to double. `from` converts back and rounds down, which is
// good enough for test data.
double value(double v) { return v; }
double value(float v) { return v; }
double value(bfloat16 v) { return to_sum(v); }
double value(float16 v) { return to_sum(v); }
template <class T> T from(double v) { return static_cast<T>(v); }
template <> bfloat16 from(double v) {
  const float single = static_cast<float>(v);
  uint32_t bits;
  std::memcpy(&bits, &single, sizeof bits);
  return {static_cast<uint16_t>(bits >> 16)};
}
template <> float16 from(double v) { // v is in [-2, 2]; |v| < 2^-14 becomes 0
  int exponent;
  const double digits = std::frexp(std::abs(v), &exponent);
  const unsigned magnitude =
      exponent < -13 ? 0 : unsigned((exponent + 14) << 10) + unsigned(digits * 2048) - 1024;
  return {static_cast<uint16_t>(magnitude | (v < 0 ? 0x8000u : 0u))};
}
template <class T> constexpr double kTolerance = 200 * std::numeric_limits<T>::epsilon();
template <> constexpr double kTolerance<bfloat16> = 0x1p-4;
template <> constexpr double kTolerance<float16> = 0x1p-7;

enum class Layout { kTime, kStrided, kBatchFirst, kHalf, kPacked, kPackedStrided };
constexpr Layout kLayouts[] = {Layout::kTime, Layout::kStrided, Layout::kBatchFirst,
                               Layout::kHalf, Layout::kPacked,  Layout::kPackedStrided};

struct Case {
  int64_t T, B, I, H;
  Layout layout;
  bool reverse = false, relu = false, bias = true, h0 = true, tokens = false;
  bool dy = true, dh_n = true;                      // which gradients are given
  bool dh0 = true, dx = true, dw = true, db = true; // which gradients are wanted

  bool packed() const { return layout == Layout::kPacked || layout == Layout::kPackedStrided; }

  std::string name() const {
    char text[200];
    std::snprintf(text, sizeof text,
                  "T=%d B=%d I=%d H=%d layout=%d reverse=%d relu=%d bias=%d h0=%d dy=%d dh_n=%d "
                  "dh0=%d dx=%d dw=%d db=%d tokens=%d",
                  int(T), int(B), int(I), int(H), int(layout), reverse, relu, bias, h0, dy, dh_n,
                  dh0, dx, dw, db, tokens);
    return text;
  }
};

// Gives the same numbers on every machine and in every run.
struct Random {
  uint64_t state = 1;
  double operator()() { // uniformly distributed in [-1, 1)
    state = state * 6364136223846793005u + 1442695040888963407u;
    return double(int64_t(state) >> 11) / double(int64_t(1) << 52);
  }
  template <class T> std::vector<T> array(int64_t n, double scale = 1) {
    std::vector<T> v(n);
    for (T& x : v) {
      x = from<T>(scale * (*this)());
    }
    return v;
  }
};

// How rows of `width` elements lie in memory: where each begins, and the size of the memory up to
// the last element.
struct Rows {
  int64_t step, row, width;
  std::vector<int64_t> begins; // [T * B]: where row b of step t begins; -1 if a packed batch has no
                               // such row
  int64_t size = 0;

  Rows(const Case& c, const std::vector<int64_t>& batch_sizes, int64_t width) : width(width) {
    const bool strided = c.layout == Layout::kStrided || c.layout == Layout::kPackedStrided;
    const int64_t pitch = strided ? width + 3 : c.layout == Layout::kHalf ? 2 * width : width;
    row = c.layout == Layout::kBatchFirst ? c.T * pitch : pitch;
    step = c.layout == Layout::kBatchFirst ? pitch : c.B * pitch + (strided ? 5 : 0);
    int64_t packed_row = 0;
    for (int64_t t = 0; t < c.T; ++t) {
      for (int64_t b = 0; b < c.B; ++b) {
        const int64_t begin = b >= batch_sizes[t] ? -1
                              : c.packed()        ? packed_row++ * row
                                                  : t * step + b * row;
        begins.push_back(begin);
        size = std::max(size, begin + width);
      }
    }
    if (c.packed()) {
      step = std::numeric_limits<int64_t>::max() / 2; // the contract says that it is ignored
    }
  }

  // A contiguous matrix.
  Rows(int64_t n, int64_t width) : step(0), row(width), width(width), size(n * width) {
    for (int64_t i = 0; i < n; ++i) {
      begins.push_back(i * width);
    }
  }
};

// Memory that the kernels write, between guards.
template <class T> class Guarded {
public:
  explicit Guarded(int64_t size) : bytes_((size + 2 * kGuard) * sizeof(T), kPattern), size_(size) {}

  T* data() { return reinterpret_cast<T*>(bytes_.data()) + kGuard; }

  // Return the rows, and fail if any other byte has changed.
  std::vector<T> take(const Rows& rows, const std::string& what) {
    std::vector<char> left = bytes_;
    std::vector<T> values;
    for (int64_t begin : rows.begins) {
      if (begin >= 0) {
        values.insert(values.end(), data() + begin, data() + begin + rows.width);
        std::memset(left.data() + (kGuard + begin) * sizeof(T), kPattern, rows.width * sizeof(T));
      }
    }
    for (size_t i = 0; i < left.size(); ++i) {
      if (left[i] != kPattern) {
        fail(what + ": the kernel wrote outside its output, at element " +
             std::to_string(int64_t(i / sizeof(T)) - kGuard) + " of " + std::to_string(size_));
      }
    }
    return values;
  }

private:
  static constexpr int64_t kGuard = 64;
  static constexpr char kPattern = 0x5A;
  std::vector<char> bytes_;
  int64_t size_;
};

template <class T> struct Inputs {
  std::vector<int64_t> batch_sizes;
  Rows x_rows, h_rows, token_rows;
  std::vector<T> x, w_ih, w_hh, b_ih, b_hh, h0, dy, dh_n;
  std::vector<int64_t> tokens;
  std::vector<T> table;

  Inputs(const Case& c, Random random = {})
      : batch_sizes(sizes(c)), x_rows(c, batch_sizes, c.I), h_rows(c, batch_sizes, c.H),
        token_rows(c, batch_sizes, 1), x(random.array<T>(x_rows.size)),
        w_ih(random.array<T>(c.H * c.I, 1 / std::sqrt(double(c.I) + 1))),
        w_hh(random.array<T>(c.H * c.H, 1 / std::sqrt(double(c.H)))), b_ih(random.array<T>(c.H)),
        b_hh(random.array<T>(c.H)), h0(random.array<T>(c.B * c.H)),
        dy(random.array<T>(h_rows.size)), dh_n(random.array<T>(c.B * c.H)), tokens(token_rows.size),
        table(c.I * c.H) {
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

  static std::vector<int64_t> sizes(const Case& c) {
    std::vector<int64_t> v(c.T);
    for (int64_t t = 0; t < c.T; ++t) {
      v[t] = c.packed() ? std::max<int64_t>(1, c.B - t * c.B / c.T) : c.B;
    }
    return v;
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
  Naive(const Case& c, const Inputs<T>& in) : c_(c), in_(in), h_(c.T * c.B * c.H) {
    for (int64_t b = 0; b < c.B; ++b) {
      for (int64_t i = 0; i < length(b); ++i) {
        const T* const x = in.x.data() + in.x_rows.begins[time(b, i) * c.B + b];
        for (int64_t j = 0; j < c.H; ++j) {
          double pre = c.bias ? value(in.b_ih[j]) + value(in.b_hh[j]) : 0;
          for (int64_t k = 0; k < c.I; ++k) {
            pre += value(in.w_ih[j * c.I + k]) * value(x[k]);
          }
          for (int64_t k = 0; k < c.H; ++k) {
            pre += value(in.w_hh[j * c.H + k]) * before(b, i, k);
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
      std::transform(h.begin() + begin, h.begin() + begin + n, h_.begin() + at(t, 0),
                     [](T v) { return value(v); });
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
      for (int64_t i = length(b) - 1; i >= 0; --i) {
        const int64_t here = at(time(b, i), b), slot = time(b, i) * c_.B + b;
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
            r.dw_hh[j * c_.H + k] += d * before(b, i, k);
          }
          for (int64_t k = 0; k < c_.I; ++k) {
            dx[slot * c_.I + k] += d * value(in_.w_ih[j * c_.I + k]);
            r.dw_ih[j * c_.I + k] += d * value(in_.x[in_.x_rows.begins[slot] + k]);
          }
          r.db[j] += d;
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
      const auto last = h_.begin() + at(time(b, length(b) - 1), b);
      r.h_n.insert(r.h_n.end(), last, last + c_.H);
    }
    r.dx = existing(dx, c_.I);
    return r;
  }

private:
  int64_t length(int64_t b) const {
    return std::count_if(in_.batch_sizes.begin(), in_.batch_sizes.end(),
                         [b](int64_t rows) { return rows > b; });
  }
  // The time step that is computed i-th for row b.
  int64_t time(int64_t b, int64_t i) const { return c_.reverse ? length(b) - 1 - i : i; }
  int64_t at(int64_t t, int64_t b) const { return (t * c_.B + b) * c_.H; }
  double before(int64_t b, int64_t i, int64_t k) const {
    return i > 0 ? h_[at(time(b, i - 1), b) + k] : c_.h0 ? value(in_.h0[b * c_.H + k]) : 0;
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
  std::vector<double> h_;
};

template <class T>
Results<T> run(const Case& c, const Inputs<T>& in, int threads, const std::string& name) {
  const Rows &rows = in.h_rows, &x_rows = in.x_rows;
  const Rows states(c.B, c.H), matrix_ih(c.H, c.I), matrix_hh(c.H, c.H), vector(1, c.H),
      matrix_table(c.I, c.H);
  Guarded<T> h(rows.size), h_n(states.size), dh0(states.size), dx(x_rows.size);
  Guarded<T> dw_ih(matrix_ih.size), dw_hh(matrix_hh.size), db(vector.size),
      dtable(matrix_table.size);
  const Shape shape{c.T, c.B, c.H, c.packed() ? in.batch_sizes.data() : nullptr, c.relu, threads};

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

template <class T>
void compare(const std::vector<T>& found, const std::vector<double>& expected,
             const std::string& name) {
  double scale = 0;
  for (double e : expected) {
    scale = std::max(scale, std::abs(e));
  }
  // The loops sum in a different order, so a loose tolerance is enough here. The tests in Python
  // hold the kernels to the rule that really matters, which is in tests/rule.py.
  const double tolerance = kTolerance<T> * (1 + scale);
  if (found.size() != expected.size()) {
    fail(name + ": got " + std::to_string(found.size()) + " values, expected " +
         std::to_string(expected.size()));
  }
  for (size_t i = 0; i < found.size(); ++i) {
    if (!(std::abs(value(found[i]) - expected[i]) <= tolerance)) {
      fail(name + ": element " + std::to_string(i) + " is " + std::to_string(value(found[i])) +
           ", expected " + std::to_string(expected[i]));
    }
  }
}

template <class T> void check(const Case& c, const char* type) {
  const Inputs<T> in(c);
  Naive<T> naive(c, in);
  const std::vector<double> outputs = naive.outputs();
  for (const Isa* isa : available_isas()) {
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
    for (int threads : {3, 4}) { // unequal shares, and groups of several threads
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

// Layers that run at the same time, each a few steps behind the layer below, and both directions of
// a layer, which share dx, must give the same bits as one thread.
void check_stacks() {
  for (int64_t directions : {1, 2}) {
    for (int64_t B : {1, 3}) {
      const int64_t T = 290, H = 129, layers = 2, width = directions * H;
      Random random;
      const std::vector<float> w = random.array<float>(H * width, 0.2),
                               x = random.array<float>(T * B * width),
                               dy = random.array<float>(T * B * width);
      std::vector<std::vector<float>> expected;
      for (int threads : {1, 2, 3, 8}) {
        std::vector<std::vector<float>> written;
        std::vector<Forward<float>> up;
        std::vector<Backward<float>> down;
        const auto rows = [&](std::vector<float>& v, int64_t d) {
          return Sequence<float>{v.data() + d * H, B * width, width};
        };
        const auto view = [&](const std::vector<float>& v, int64_t d) {
          return Sequence<const float>{v.data() + d * H, B * width, width};
        };
        written.assign(2 * layers, std::vector<float>(T * B * width));
        for (int64_t n = 0; n < layers * directions; ++n) {
          const int64_t l = n / directions, d = n % directions;
          Forward<float> f{};
          f.reverse = d == 1, f.I = width, f.x = view(l == 0 ? x : written[l - 1], 0);
          f.w_ih = w.data(), f.w_hh = w.data(), f.h = rows(written[l], d);
          up.push_back(f);
          Backward<float> g{};
          g.reverse = d == 1, g.I = width, g.x = f.x, g.w_ih = f.w_ih, g.w_hh = f.w_hh;
          g.h = view(written[l], d);
          if (l == layers - 1 || directions == 2) {
            g.dy = view(l == layers - 1 ? dy : written[layers + l + 1], d);
          }
          if (l == 0 || directions == 2) {
            g.dx = rows(written[layers + l], 0);
          }
          down.push_back(g);
        }
        const Shape shape{T, B, H, nullptr, false, threads};
        forward(shape, layers, directions, up.data());
        backward(shape, layers, directions, down.data());
        if (threads == 1) {
          expected = written;
        } else if (written != expected) {
          fail("a stack of " + std::to_string(directions) + " directions, B=" + std::to_string(B) +
               ": " + std::to_string(threads) + " threads give other bits than one");
        }
      }
    }
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

// Compare greedy tokens with nested loops, and draw tokens with every kind of filter.
void check_generate(int64_t V, int64_t H, int64_t L, bool relu) {
  Random random;
  const std::vector<float> table = random.array<float>(V * H, 2), b = random.array<float>(H, 0.2);
  const std::vector<float> w = random.array<float>(H * H, 1 / std::sqrt(double(H)));
  const std::vector<float> w2 = random.array<float>(H * 2 * H, 1 / std::sqrt(double(H)));
  const std::vector<float> decoder_w = random.array<float>(V * H);
  std::vector<float> decoder_b = random.array<float>(V, 0.2);
  LanguageModel model{V, H, relu, table.data(), decoder_w.data(), decoder_b.data(), {}};
  for (int64_t l = 0; l < L; ++l) {
    model.layers.push_back({l == 0 ? w.data() : w2.data(), b.data()});
  }
  const std::vector<int64_t> prompt{0, V - 1, V / 2};
  for (const Isa* isa : available_isas()) {
    set_isa(isa->name);
    const std::string name = std::string(isa->name) + " generate V=" + std::to_string(V) +
                             " H=" + std::to_string(H) + " L=" + std::to_string(L);
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
    std::vector<std::vector<double>> states(L, std::vector<double>(H));
    for (size_t i = 0; i + 1 < tokens.size(); ++i) {
      for (int64_t l = 0; l < L; ++l) {
        std::vector<double> next(b.begin(), b.end());
        for (int64_t j = 0; j < H; ++j) {
          next[j] += l == 0 ? double(table[tokens[i] * H + j]) : 0;
          for (int64_t k = 0; k < H; ++k) {
            next[j] += double(l == 0 ? w[j * H + k] : w2[j * 2 * H + k]) * states[l][k];
            next[j] += l == 0 ? 0 : double(w2[j * 2 * H + H + k]) * states[l - 1][k];
          }
          next[j] = relu ? std::max(next[j], 0.0) : std::tanh(next[j]);
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
      for (int threads : {1, 3}) {
        Sampler sampler(model, sampling, threads);
        for (int64_t n = 0; n < 30;) {
          // The first call always runs on one thread, the second on all.
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
  for (const Isa* isa : available_isas()) {
    set_isa(isa->name);
    const std::string name = std::string(isa->name) + " loss N=" + std::to_string(N) +
                             " H=" + std::to_string(H) + " V=" + std::to_string(V);
    std::vector<std::vector<T>> expected;
    for (int threads : {1, 2, 3, 4}) {
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
  for (const Isa* isa : available_isas()) {
    set_isa(isa->name);
    const std::string name = std::string(isa->name) + " glove V=" + std::to_string(V) +
                             " D=" + std::to_string(D) + " P=" + std::to_string(P);
    std::vector<float> expected[2];
    for (int threads : {1, 2, 3, 4}) {
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

// Compare dropout with SplitMix64 as it is defined, from one state to the next.
template <class T> void check_dropout(int64_t n, double p) {
  Random random;
  const std::vector<T> x = random.array<T>(n);
  const double dropped = std::nearbyint(p * 0x1p32);
  std::vector<double> expected;
  uint64_t state = 12345, z = 0;
  for (int64_t i = 0; i < n; ++i, z >>= 32) {
    if (i % 2 == 0) {
      z = state += 0x9E3779B97F4A7C15;
      z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
      z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
      z ^= z >> 31;
    }
    const bool kept = double(z & 0xFFFFFFFF) >= dropped;
    expected.push_back(kept ? value(x[i]) / (1 - dropped * 0x1p-32) : 0);
  }
  for (const Isa* isa : available_isas()) {
    set_isa(isa->name);
    const std::string name =
        std::string(isa->name) + " dropout n=" + std::to_string(n) + " p=" + std::to_string(p);
    std::vector<T> first;
    for (int threads : {1, 2, 3, 4}) {
      Guarded<T> out(n);
      dropout(Dropout<T>{n, x.data(), 12345, p, out.data(), threads});
      const std::vector<T> found = out.take(Rows(1, n), name);
      if (threads == 1) {
        compare(found, expected, name);
        first = found;
      } else if (std::memcmp(found.data(), first.data(), n * sizeof(T)) != 0) {
        fail(name + ": " + std::to_string(threads) + " threads give other bits than one");
      }
    }
  }
  set_isa("");
}

void check_isa_names() {
  try {
    set_isa("nosuch");
  } catch (const std::invalid_argument& error) {
    if (std::strstr(error.what(), "generic") == nullptr) {
      fail("the error for a wrong instruction set does not name the choices");
    }
    return;
  }
  fail("a wrong instruction set was accepted");
}

} // namespace

int main() {
  check_isa_names();
  check_wrong_tokens();
  check_stacks();
  check_loss<float>(1, 1, 1);
  check_loss<double>(3, 7, 17);
  check_loss<float>(5, 65, 1030);   // several slices of classes
  check_loss<double>(261, 9, 515);  // more rows than kOuterRows
  check_loss<float>(70, 3, 131585); // two blocks of rows, the first of kLeastRows
  check_dropout<float>(1, 0.5);
  check_dropout<double>(515, 0.1);
  check_dropout<bfloat16>(33, 0.9);
  check_dropout<float16>(70, 1);
  check_dropout<float>(300'011, 0.3); // large enough for several threads
  check_generate(1, 1, 1, false);
  check_generate(65, 33, 1, true);
  check_generate(17, 7, 3, false);
  check_generate(300, 261, 2, false); // large enough for several threads
  check_glove(1, 1, 1);
  check_glove(7, 50, 3);
  check_glove(23, 33, 8);
  // clang-format off
  const int64_t sizes[][4] = {
      // T, B, I, H
      {1, 1, 1, 1},
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
  std::printf("%d cases, instruction sets:", cases);
  for (const Isa* isa : available_isas()) {
    std::printf(" %s", isa->name);
  }
  std::printf("\n");
}
