// Python's door to the kernels: checks what they trust, releases the GIL and calls. No maths, no
// torch. rnnfast/_ops.py has allocated what is written and keeps everything alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <sched.h>

#include "api/dropout.h"
#include "api/generate.h"
#include "api/glove.h"
#include "api/loss.h"
#include "api/rnn.h"
#include "cpu/isa.h"
#include "tensor.h"

namespace py = pybind11;
using namespace rnnfast;

void bind_cuda(py::module_& m); // cuda/bindings.cpp

namespace {

template <class T> void require(bool holds, const char* what, T got) {
  if (!holds) {
    throw std::invalid_argument(what + (", got " + std::to_string(got)));
  }
}

// Threads that wait for one another at every step must run at the same time: with more than there
// are CPUs each wait would last until the system takes turns.
int usable_cpus() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                     : std::numeric_limits<int>::max();
}

// The arguments that forward and backward share. Letters as in rnn.h; L layers, D directions.
// Weights are contiguous; the first w_ih of tokens is given transposed, a table [I, H].
class Call {
public:
  Shape shape;
  int64_t L, D, I; // I of the first layer
  bool one_hot, batch_first, bias;
  Dtype dtype;
  Tensor x, h0;

  Call(py::handle x_, py::handle h0_, const py::list& weights, py::handle batch_sizes_, int64_t L_,
       bool batch_first_, bool relu, bool bias_, int threads)
      : L(L_), batch_first(batch_first_), bias(bias_), x("input", x_), h0("hx", h0_) {
    const int64_t per = bias ? 4 : 2, count = int64_t(weights.size());
    D = L < 1 ? 0 : count / (L * per);
    if (D < 1 || D > 2 || D * L * per != count) {
      throw std::invalid_argument("weights must be " + std::to_string(per) +
                                  " tensors for each layer and direction, got " +
                                  std::to_string(count) + " for " + std::to_string(L) + " layers");
    }
    require(threads >= 1, "threads must be at least 1", threads);
    one_hot = x.dtype() == Dtype::kInt64;
    const Tensor batch_sizes("batch_sizes", batch_sizes_);
    packed_ = bool(batch_sizes);
    if (x.dim() + one_hot != (packed_ ? 2 : 3)) {
      x.refuse(packed_ ? "(N, I), or int64 (N)" : "(T, B, I), or int64 (T, B)");
    }
    shape.relu = relu, shape.threads = std::min(threads, usable_cpus()),
    shape.batch_sizes = batch_sizes.data<int64_t>();
    if (packed_) {
      check(batch_sizes);
    } else {
      shape.T = x.size(batch_first), shape.B = x.size(!batch_first);
    }
    if (shape.T < 1 || shape.B < 1) {
      x.refuse("of at least one step and one row");
    }

    const Tensor w_hh("weight_hh", weights[1]);
    if (w_hh.dim() != 2 || w_hh.size(1) < 1) {
      w_hh.refuse("(H, H)");
    }
    shape.H = w_hh.size(1);
    dtype = one_hot ? w_hh.dtype() : x.dtype();
    if (dtype == Dtype::kInt64 || dtype == Dtype::kOther) {
      (one_hot ? w_hh : x).refuse("of torch.float32, float64, bfloat16 or float16");
    }
    const Tensor first("weight_ih", weights[0]);
    I = !one_hot ? x.size(-1) : first.dim() == 2 ? first.size(0) : 0;
    for (int64_t n = 0; n < L * D; ++n) {
      const bool table = one_hot && n < D;
      const int64_t inputs = this->inputs(n);
      const Tensor w_ih("weight_ih", weights[n * per]), w_hh("weight_hh", weights[n * per + 1]);
      w_ih_.push_back(
          w_ih.expect_contiguous(dtype, {table ? inputs : shape.H, table ? shape.H : inputs}));
      w_hh_.push_back(w_hh.expect_contiguous(dtype, {shape.H, shape.H}));
      if (bias) {
        const Tensor b_ih("bias_ih", weights[n * per + 2]), b_hh("bias_hh", weights[n * per + 3]);
        b_ih_.push_back(b_ih.expect_contiguous(dtype, {shape.H}));
        b_hh_.push_back(b_hh.expect_contiguous(dtype, {shape.H}));
      } else {
        b_ih_.emplace_back(), b_hh_.emplace_back();
      }
    }
    if (h0) {
      h0.expect_contiguous(dtype, {L * D, shape.B, shape.H});
    }
  }

  // Input size of the n-th direction of the stack.
  int64_t inputs(int64_t n) const { return n < D ? I : D * shape.H; }
  bool table(int64_t n) const { return one_hot && n < D; }

  // The elements of an [L * D, B, H] tensor that belong to the n-th direction.
  template <class T> T* state(const Tensor& t, int64_t n) const {
    return t.data<T>(n * shape.B * shape.H);
  }
  // What the n-th direction wrote or writes of its layer's outputs.
  template <class T> Sequence<T> half(const Tensor& t, int64_t n) const {
    return sequence<T>(t, n % D * shape.H);
  }
  template <class T> Sequence<T> sequence(const Tensor& t, int64_t offset = 0) const {
    return !t ? Sequence<T>{nullptr, 0, 0}
           : packed_
               ? Sequence<T>{t.data<T>(offset), 0, t.stride(0)}
               : Sequence<T>{t.data<T>(offset), t.stride(batch_first), t.stride(!batch_first)};
  }
  // A tensor of rows of `width`, laid out as x is.
  const Tensor& expect_rows(const Tensor& t, int64_t width) const {
    return packed_ ? t.expect(dtype, {x.size(0), width})
                   : t.expect(dtype, {x.size(0), x.size(1), width});
  }
  std::vector<Tensor> outputs(const py::list& list) const {
    std::vector<Tensor> outs;
    for (py::handle object : list) {
      outs.push_back(expect_rows(Tensor("out", object), D * shape.H));
    }
    if (int64_t(outs.size()) != L) {
      throw std::invalid_argument("outs must be one for each of " + std::to_string(L) +
                                  " layers, got " + std::to_string(outs.size()));
    }
    return outs;
  }

  const Tensor& w_ih(int64_t n) const { return w_ih_[n]; }
  const Tensor& w_hh(int64_t n) const { return w_hh_[n]; }
  const Tensor& b_ih(int64_t n) const { return b_ih_[n]; }
  const Tensor& b_hh(int64_t n) const { return b_hh_[n]; }

private:
  void check(const Tensor& batch_sizes) {
    if (batch_sizes.dtype() != Dtype::kInt64 || batch_sizes.dim() != 1 ||
        batch_sizes.size(0) == 0) {
      batch_sizes.refuse("torch.int64 (T)");
    }
    batch_sizes.expect_contiguous(Dtype::kInt64, {batch_sizes.size(0)});
    shape.T = batch_sizes.size(0), shape.B = shape.batch_sizes[0];
    int64_t sum = 0;
    for (int64_t t = 0; t < shape.T; ++t) {
      sum += shape.batch_sizes[t];
      if (shape.batch_sizes[t] < 1 || (t > 0 && shape.batch_sizes[t] > shape.batch_sizes[t - 1])) {
        throw std::runtime_error("batch_sizes must be positive and never increase");
      }
    }
    if (sum != x.size(0)) {
      throw std::runtime_error("batch_sizes must sum to the " + std::to_string(x.size(0)) +
                               " rows of input, got " + std::to_string(sum));
    }
  }

  bool packed_;
  std::vector<Tensor> w_ih_, w_hh_, b_ih_, b_hh_;
};

// Calls `run` with an element of the type that the kernels have for a dtype.
template <class Run> void dispatch(Dtype dtype, const Run& run) {
  switch (dtype) {
  case Dtype::kFloat64:
    return run(double());
  case Dtype::kBfloat16:
    return run(bfloat16());
  case Dtype::kFloat16:
    return run(float16());
  default: // Call has refused all others
    return run(float());
  }
}

template <class T>
void run_forward(const Call& call, const std::vector<Tensor>& outs, const Tensor& h_n) {
  std::vector<Forward<T>> stack;
  for (int64_t n = 0; n < call.L * call.D; ++n) {
    const Tensor& below = n < call.D ? call.x : outs[n / call.D - 1];
    Forward<T> f{};
    f.reverse = n % call.D == 1, f.I = call.inputs(n);
    if (call.table(n)) {
      f.tokens = call.sequence<const int64_t>(below), f.table = call.w_ih(n).data<T>();
    } else {
      f.x = call.sequence<const T>(below), f.w_ih = call.w_ih(n).data<T>();
    }
    f.w_hh = call.w_hh(n).data<T>();
    f.b_ih = call.b_ih(n).data<T>(), f.b_hh = call.b_hh(n).data<T>();
    f.h0 = call.state<T>(call.h0, n), f.h_n = call.state<T>(h_n, n);
    f.h = call.half<T>(outs[n / call.D], n);
    stack.push_back(f);
  }
  py::gil_scoped_release release;
  forward(call.shape, call.L, call.D, stack.data());
}

void py_forward(py::handle x, py::handle h0, const py::list& weights, py::handle batch_sizes,
                int64_t num_layers, bool batch_first, bool relu, bool bias, int threads,
                const py::list& outs, py::handle h_n) {
  const Call call(x, h0, weights, batch_sizes, num_layers, batch_first, relu, bias, threads);
  const std::vector<Tensor> outputs = call.outputs(outs);
  const Tensor last("h_n", h_n);
  last.expect_contiguous(call.dtype, {call.L * call.D, call.shape.B, call.shape.H});
  dispatch(call.dtype, [&](auto element) { run_forward<decltype(element)>(call, outputs, last); });
}

// What the backward reads and writes besides: None is not wanted.
struct Gradients {
  Tensor dy, dh_n, dx, dh0;
  std::vector<Tensor> outs, between; // `between`: of layers between, two directions wide
  // Of each direction, or empty. The two biases have the same gradient, but not one tensor.
  std::vector<Tensor> dw_ih, dw_hh, db, same_db;
};

template <class T> void run_backward(const Call& call, const Gradients& g) {
  std::vector<Backward<T>> stack;
  for (int64_t n = 0; n < call.L * call.D; ++n) {
    const int64_t layer = n / call.D;
    const Tensor& below = layer == 0 ? call.x : g.outs[layer - 1];
    const Tensor none;
    const auto between = [&](int64_t l) -> const Tensor& {
      return g.between.empty() ? none : g.between[l % g.between.size()];
    };
    const Tensor& dy = layer == call.L - 1 ? g.dy : between(layer);
    const Tensor& dx = layer == 0 ? g.dx : between(layer - 1);
    Backward<T> b{};
    b.reverse = n % call.D == 1, b.I = call.inputs(n);
    b.h = call.half<const T>(g.outs[layer], n), b.w_hh = call.w_hh(n).data<T>();
    b.dy = call.half<const T>(dy, n), b.dh_n = call.state<T>(g.dh_n, n);
    b.dh0 = call.state<T>(g.dh0, n), b.h0 = call.state<T>(call.h0, n);
    T* const dw_ih = g.dw_ih.empty() ? nullptr : g.dw_ih[n].data<T>();
    if (call.table(n)) {
      b.tokens = call.sequence<const int64_t>(below), b.dtable = dw_ih;
    } else {
      b.x = call.sequence<const T>(below), b.w_ih = call.w_ih(n).data<T>(), b.dw_ih = dw_ih;
      b.dx = call.sequence<T>(dx);
    }
    b.dw_hh = g.dw_hh.empty() ? nullptr : g.dw_hh[n].data<T>();
    b.db = g.db.empty() ? nullptr : g.db[n].data<T>();
    stack.push_back(b);
  }
  py::gil_scoped_release release;
  backward(call.shape, call.L, call.D, stack.data());
  for (size_t n = 0; n < g.db.size(); ++n) {
    std::memcpy(g.same_db[n].data<T>(), stack[n].db, call.shape.H * sizeof(T));
  }
}

void py_backward(py::handle dy, py::handle dh_n, const py::list& outs, py::handle x, py::handle h0,
                 const py::list& weights, py::handle batch_sizes, int64_t num_layers,
                 bool batch_first, bool relu, bool bias, int threads, py::handle dx, py::handle dh0,
                 const py::list& dw, const py::list& between) {
  const Call call(x, h0, weights, batch_sizes, num_layers, batch_first, relu, bias, threads);
  const int64_t B = call.shape.B, H = call.shape.H, n = call.L * call.D, width = call.D * H;
  Gradients g;
  g.outs = call.outputs(outs);
  g.dy = Tensor("the gradient of output", dy), g.dh_n = Tensor("the gradient of h_n", dh_n);
  g.dx = Tensor("dx", dx), g.dh0 = Tensor("dh0", dh0);
  if (g.dy) {
    call.expect_rows(g.dy, width);
  }
  if (g.dx) {
    call.expect_rows(g.dx, call.I);
  }
  for (const Tensor* state : {&g.dh_n, &g.dh0}) {
    if (*state) {
      state->expect_contiguous(call.dtype, {n, B, H});
    }
  }
  for (py::handle object : between) {
    g.between.push_back(call.expect_rows(Tensor("between", object), width));
  }
  const int64_t per = bias ? 4 : 2;
  if ((dw.size() != 0 && int64_t(dw.size()) != n * per) ||
      int64_t(between.size()) != (call.D == 1 ? 0 : std::min<int64_t>(2, call.L - 1))) {
    throw std::invalid_argument("dw and between must fit the layers, got " +
                                std::to_string(dw.size()) + " and " +
                                std::to_string(between.size()));
  }
  for (int64_t i = 0; i < n && dw.size() != 0; ++i) {
    const int64_t rows = call.table(i) ? call.inputs(i) : H;
    g.dw_ih.push_back(
        Tensor("dw_ih", dw[i * per])
            .expect_contiguous(call.dtype, {rows, call.table(i) ? H : call.inputs(i)}));
    g.dw_hh.push_back(Tensor("dw_hh", dw[i * per + 1]).expect_contiguous(call.dtype, {H, H}));
    if (bias) {
      g.db.push_back(Tensor("db", dw[i * per + 2]).expect_contiguous(call.dtype, {H}));
      g.same_db.push_back(Tensor("db", dw[i * per + 3]).expect_contiguous(call.dtype, {H}));
    }
  }
  dispatch(call.dtype, [&](auto element) { run_backward<decltype(element)>(call, g); });
}

template <class T>
void run_cross_entropy(const Tensor& x, const Tensor& w, const Tensor& target, const Tensor& b,
                       const Tensor& dloss, std::optional<double> scale, int threads,
                       const Tensor& loss, const Tensor& dx, const Tensor& dw, const Tensor& db) {
  const T same = static_cast<T>(scale.value_or(0));
  std::vector<T> losses(scale ? x.size(0) : 0);
  LinearCrossEntropy<T> c{};
  c.N = x.size(0), c.H = x.size(1), c.V = w.size(0);
  c.x = x.data<T>(), c.x_row = x.stride(0), c.w = w.data<T>(), c.b = b.data<T>();
  c.target = target.data<int64_t>();
  c.dloss = scale ? &same : dloss.data<T>(), c.dloss_step = dloss ? dloss.stride(0) : 0;
  c.loss = scale ? losses.data() : loss.data<T>();
  c.dx = dx.data<T>(), c.dw = dw.data<T>(), c.db = db.data<T>();
  c.threads = threads;
  py::gil_scoped_release release;
  const double sum = linear_cross_entropy(c);
  if (scale) {
    *loss.data<T>() = static_cast<T>(*scale * sum);
  }
}

// With `scale` the loss is one number, the losses' sum times it, and the gradients are of that;
// else it is [N], and the gradients are for `dloss`, [N].
void py_linear_cross_entropy(py::handle x_, py::handle w_, py::handle target_, py::handle b_,
                             py::handle dloss_, std::optional<double> scale, int threads,
                             py::handle loss_, py::handle dx_, py::handle dw_, py::handle db_) {
  const Tensor x("input", x_), w("linear_weight", w_), target("target", target_),
      b("linear_bias", b_), dloss("dloss", dloss_), loss("loss", loss_), dx("dx", dx_),
      dw("dw", dw_), db("db", db_);
  const Dtype dtype = x.dtype();
  if ((dtype != Dtype::kFloat32 && dtype != Dtype::kFloat64) || x.dim() != 2 || x.size(0) < 1 ||
      x.size(1) < 1) {
    x.refuse("torch.float32 or float64 (N, H), neither of them 0");
  }
  const int64_t N = x.size(0), H = x.size(1);
  if (w.dim() != 2 || w.size(0) < 1) {
    w.refuse("(V, H)");
  }
  const int64_t V = w.size(0);
  x.expect(dtype, {N, H});
  w.expect_contiguous(dtype, {V, H});
  target.expect_contiguous(Dtype::kInt64, {N});
  if (scale) {
    loss.expect_contiguous(dtype, {});
  } else {
    loss.expect_contiguous(dtype, {N});
  }
  if (b) {
    b.expect_contiguous(dtype, {V});
  }
  if (dloss) {
    dloss.expect(dtype, {N});
  }
  if (scale ? bool(dloss) : !dloss && (dx || dw || db)) {
    throw std::invalid_argument("dloss must be given for gradients without scale, and only there");
  }
  if (dx) {
    dx.expect_contiguous(dtype, {N, H});
  }
  if (dw) {
    dw.expect_contiguous(dtype, {V, H});
  }
  if (db) {
    db.expect_contiguous(dtype, {V});
  }
  (dtype == Dtype::kFloat32
       ? run_cross_entropy<float>
       : run_cross_entropy<double>)(x, w, target, b, dloss, scale, threads, loss, dx, dw, db);
}

void py_dropout(py::handle x_, py::handle seed_, double p, int threads, py::handle out_) {
  const Tensor x("input", x_), seed("seed", seed_), out("out", out_);
  const Dtype dtype = x.dtype();
  if (x.dim() != 1 || dtype == Dtype::kInt64 || dtype == Dtype::kOther) {
    x.refuse("torch.float32, float64, bfloat16 or float16 (n)");
  }
  const int64_t n = x.size(0);
  x.expect_contiguous(dtype, {n});
  seed.expect_contiguous(Dtype::kInt64, {});
  out.expect_contiguous(dtype, {n});
  require(p >= 0 && p <= 1, "p must be in [0, 1]", p);
  require(threads >= 1, "threads must be at least 1", threads);
  dispatch(dtype, [&](auto element) {
    using T = decltype(element);
    const auto number = static_cast<uint64_t>(*seed.data<int64_t>());
    const Dropout<T> call{n, x.data<const T>(), number, p, out.data<T>(), threads};
    py::gil_scoped_release release;
    dropout(call);
  });
}

// table [V, H]; `layers` holds a weight [H, H], above the first [H, 2H], and a bias [H] for each;
// decoder_w [V, H], decoder_b [V].
std::unique_ptr<Sampler> py_sampler(py::handle table_, const py::list& layers,
                                    py::handle decoder_w_, py::handle decoder_b_, bool relu,
                                    double temperature, int64_t top_k, double top_p, int64_t stop,
                                    uint64_t seed, int threads) {
  const Tensor table("table", table_), decoder_w("decoder weight", decoder_w_),
      decoder_b("decoder bias", decoder_b_);
  if (table.dim() != 2 || table.size(0) < 1 || table.size(1) < 1) {
    table.refuse("(V, H)");
  }
  const int64_t V = table.size(0), H = table.size(1);
  table.expect_contiguous(Dtype::kFloat32, {V, H});
  decoder_w.expect_contiguous(Dtype::kFloat32, {V, H});
  decoder_b.expect_contiguous(Dtype::kFloat32, {V});
  require(!layers.empty(), "there must be at least 1 layer", layers.size());
  require(temperature >= 0 && std::isfinite(temperature), "temperature must be finite and >= 0",
          temperature);
  require(top_k >= 1, "top_k must be at least 1", top_k);
  require(top_p > 0 && top_p <= 1, "top_p must be in (0, 1]", top_p);
  require(stop >= -1 && stop < V, "stop must be a token in [0, V), or -1", stop);
  LanguageModel model{V,
                      H,
                      relu,
                      table.data<const float>(),
                      decoder_w.data<const float>(),
                      decoder_b.data<const float>(),
                      {}};
  for (py::handle pair : layers) {
    const auto [w_, b_] = pair.cast<std::pair<py::object, py::object>>();
    const std::string layer = " of layer " + std::to_string(model.layers.size());
    const std::string w_name = "weight" + layer, b_name = "bias" + layer;
    const Tensor w(w_name.c_str(), w_), b(b_name.c_str(), b_);
    w.expect_contiguous(Dtype::kFloat32, {H, model.layers.empty() ? H : 2 * H});
    b.expect_contiguous(Dtype::kFloat32, {H});
    model.layers.push_back({w.data<const float>(), b.data<const float>()});
  }
  py::gil_scoped_release release;
  return std::make_unique<Sampler>(model, Sampling{temperature, top_k, top_p, stop, seed},
                                   std::min(threads, usable_cpus()));
}

std::vector<int64_t> py_generate(Sampler& sampler, int64_t n) {
  if (n < 0) {
    throw std::invalid_argument("n must be zero or more, got " + std::to_string(n));
  }
  std::vector<int64_t> tokens(n);
  tokens.resize(sampler.generate(n, tokens.data()));
  return tokens;
}

// starts [P * P + 1], shifts [P]; row, column, log_x, weight [N]; words, contexts [V, 2, D + 1].
// Returns the sum of the entries' terms.
double py_glove_epoch(py::handle starts_, py::handle shifts_, py::handle row_, py::handle column_,
                      py::handle log_x_, py::handle weight_, py::handle words_,
                      py::handle contexts_, double lr, int threads) {
  const Tensor starts("starts", starts_), shifts("shifts", shifts_), row("row", row_),
      column("column", column_), log_x("log_x", log_x_), weight("weight", weight_),
      words("words", words_), contexts("contexts", contexts_);
  if (words.dim() != 3 || words.size(0) < 1 || words.size(1) != 2 || words.size(2) < 2) {
    words.refuse("(V, 2, D + 1)");
  }
  if (shifts.dim() != 1 || shifts.size(0) < 1) {
    shifts.refuse("(P)");
  }
  if (row.dim() != 1 || row.size(0) < 1) {
    row.refuse("(N)");
  }
  require(threads >= 1, "threads must be at least 1", threads);
  const int64_t V = words.size(0), D = words.size(2) - 1, P = shifts.size(0), N = row.size(0);
  starts.expect_contiguous(Dtype::kInt64, {P * P + 1});
  shifts.expect_contiguous(Dtype::kInt64, {P});
  row.expect_contiguous(Dtype::kInt64, {N});
  column.expect_contiguous(Dtype::kInt64, {N});
  log_x.expect_contiguous(Dtype::kFloat32, {N});
  weight.expect_contiguous(Dtype::kFloat32, {N});
  words.expect_contiguous(Dtype::kFloat32, {V, 2, D + 1});
  contexts.expect_contiguous(Dtype::kFloat32, {V, 2, D + 1});
  const Glove call{N,
                   V,
                   D,
                   P,
                   starts.data<const int64_t>(),
                   shifts.data<const int64_t>(),
                   row.data<const int64_t>(),
                   column.data<const int64_t>(),
                   log_x.data<const float>(),
                   weight.data<const float>(),
                   words.data<float>(),
                   contexts.data<float>(),
                   float(lr),
                   threads};
  py::gil_scoped_release release;
  return glove_epoch(call);
}

} // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of rnnfast; called by rnnfast._ops alone.";
  m.def("empty", [](const std::vector<int64_t>& shape, py::handle like) {
    return new_tensor(shape, Tensor::like(like).type());
  });
  m.def("empty_like", [](const std::vector<py::object>& tensors) {
    std::vector<py::object> made;
    for (const py::object& object : tensors) {
      const Tensor like = Tensor::like(object);
      made.push_back(like ? new_tensor(like.shape(), like.type()) : py::none());
    }
    return made;
  });
  m.def("forward", &py_forward);
  m.def("backward", &py_backward);
  m.def("linear_cross_entropy", &py_linear_cross_entropy);
  m.def("dropout", &py_dropout);
  m.def("glove_epoch", &py_glove_epoch);
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Isa* isa : available_isas()) {
      names.emplace_back(isa->name);
    }
    return names;
  });
  m.def("isa", [] { return std::string(current_isa().name); });
  m.def("set_isa", &set_isa);
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
#if defined(RNNFAST_CUDA)
  m.attr("cuda") = true;
  bind_cuda(m);
#else
  m.attr("cuda") = false;
#endif
  m.attr("compiler") = __VERSION__;
  const py::call_guard<py::gil_scoped_release> no_gil;
  py::class_<Sampler>(m, "Sampler", py::module_local())
      .def(py::init(&py_sampler))
      .def(
          "feed",
          [](Sampler& sampler, const std::vector<int64_t>& tokens) {
            sampler.feed(tokens.data(), static_cast<int64_t>(tokens.size()));
          },
          no_gil)
      .def("generate", &py_generate, no_gil);
}
