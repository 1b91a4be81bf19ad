// Binds the recurrence, forward and backward; see api/rnn.h.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "../api/rnn.h"
#include "bindings.h"

namespace py = pybind11;
using namespace rnnfast;

namespace {

// The arguments that forward and backward have in common. The letters are those of api/rnn.h. All
// weights are contiguous. If the input is one-hot, the W_ih of layer 0 is given transposed, as a
// table [I, H].
class RnnArguments {
public:
  Shape shape;
  int64_t L, D, I; // I is the input size of layer 0
  bool one_hot, batch_first, bias;
  Dtype dtype;
  TensorView x, h0;

  RnnArguments(py::handle x_, py::handle h0_, const py::list& weights, py::handle batch_sizes_,
               py::handle reset_, int64_t L_, bool batch_first_, bool relu, bool bias_, int threads)
      : L(L_), batch_first(batch_first_), bias(bias_), x("input", x_), h0("hx", h0_) {
    const int64_t per = bias ? 4 : 2, count = int64_t(weights.size());
    D = L < 1 ? 0 : count / (L * per);
    if (D < 1 || D > 2 || D * L * per != count) {
      throw std::invalid_argument(
          "weights must have " + std::to_string(per) +
          " tensors for each layer and for each of 1 or 2 directions, got " +
          std::to_string(count) + " tensors for " + std::to_string(L) + " layers");
    }
    require(threads >= 1, "threads must be at least 1", threads);
    one_hot = x.dtype() == Dtype::kInt64;
    const TensorView batch_sizes("batch_sizes", batch_sizes_);
    packed_ = bool(batch_sizes);
    if (x.dim() + one_hot != (packed_ ? 2 : 3)) {
      x.refuse(packed_ ? "(N, I), or int64 (N) for one-hot input"
                       : "(T, B, I), or int64 (T, B) for one-hot input");
    }
    shape.relu = relu, shape.threads = std::min(threads, usable_cpus()),
    shape.batch_sizes = batch_sizes.data<int64_t>();
    if (packed_) {
      check(batch_sizes);
    } else {
      shape.T = x.size(batch_first), shape.B = x.size(!batch_first);
    }
    if (shape.T < 1 || shape.B < 1) {
      x.refuse("of at least one time step and one row");
    }

    const TensorView w_hh("weight_hh", weights[1]);
    if (w_hh.dim() != 2 || w_hh.size(1) < 1) {
      w_hh.refuse("(H, H) with H at least 1");
    }
    shape.H = w_hh.size(1);
    dtype = one_hot ? w_hh.dtype() : x.dtype();
    if (dtype == Dtype::kInt64 || dtype == Dtype::kOther) {
      (one_hot ? w_hh : x).refuse("torch.float32, torch.float64, torch.bfloat16 or torch.float16");
    }
    const TensorView reset("reset", reset_);
    if (reset) {
      check_reset(reset);
      shape.reset = sequence<const bool>(reset);
    }
    const TensorView first("weight_ih", weights[0]);
    I = !one_hot ? x.size(-1) : first.dim() == 2 ? first.size(0) : 0;
    for (int64_t n = 0; n < L * D; ++n) {
      const bool table = one_hot && n < D;
      const int64_t inputs = this->inputs(n);
      const TensorView w_ih("weight_ih", weights[n * per]), w_hh("weight_hh", weights[n * per + 1]);
      w_ih_.push_back(
          w_ih.expect_contiguous(dtype, {table ? inputs : shape.H, table ? shape.H : inputs}));
      w_hh_.push_back(w_hh.expect_contiguous(dtype, {shape.H, shape.H}));
      if (bias) {
        const TensorView b_ih("bias_ih", weights[n * per + 2]),
            b_hh("bias_hh", weights[n * per + 3]);
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

  // The input size of direction n of the stack, counted through all layers.
  int64_t inputs(int64_t n) const { return n < D ? I : D * shape.H; }
  // Whether direction n reads a table.
  bool has_table(int64_t n) const { return one_hot && n < D; }

  // The part of an [L * D, B, H] tensor that belongs to direction n.
  template <class T> T* state(const TensorView& t, int64_t n) const {
    return t.data<T>(n * shape.B * shape.H);
  }
  // The columns of the output of a layer that belong to direction n.
  template <class T> Sequence<T> direction_columns(const TensorView& t, int64_t n) const {
    return sequence<T>(t, n % D * shape.H);
  }
  // A tensor that is laid out as the input is, from the column `offset` on.
  template <class T> Sequence<T> sequence(const TensorView& t, int64_t offset = 0) const {
    return !t ? Sequence<T>{nullptr, 0, 0}
           : packed_
               ? Sequence<T>{t.data<T>(offset), 0, t.stride(0)}
               : Sequence<T>{t.data<T>(offset), t.stride(batch_first), t.stride(!batch_first)};
  }
  // Throw unless `t` has a row of `width` elements for every row of the input.
  const TensorView& expect_rows(const TensorView& t, int64_t width) const {
    return packed_ ? t.expect(dtype, {x.size(0), width})
                   : t.expect(dtype, {x.size(0), x.size(1), width});
  }
  // The outputs of all layers.
  std::vector<TensorView> outputs(const py::list& list) const {
    std::vector<TensorView> outs;
    for (py::handle object : list) {
      outs.push_back(expect_rows(TensorView("out", object), D * shape.H));
    }
    if (int64_t(outs.size()) != L) {
      throw std::invalid_argument("outs must have one tensor for each of " + std::to_string(L) +
                                  " layers, got " + std::to_string(outs.size()) + " tensors");
    }
    return outs;
  }

  const TensorView& w_ih(int64_t n) const { return w_ih_[n]; }
  const TensorView& w_hh(int64_t n) const { return w_hh_[n]; }
  const TensorView& b_ih(int64_t n) const { return b_ih_[n]; }
  const TensorView& b_hh(int64_t n) const { return b_hh_[n]; }

private:
  void check(const TensorView& batch_sizes) {
    if (batch_sizes.dtype() != Dtype::kInt64 || batch_sizes.dim() != 1 ||
        batch_sizes.size(0) == 0) {
      batch_sizes.refuse("torch.int64 (T) with T at least 1");
    }
    batch_sizes.expect_contiguous(Dtype::kInt64, {batch_sizes.size(0)});
    shape.T = batch_sizes.size(0), shape.B = shape.batch_sizes[0];
    int64_t sum = 0;
    for (int64_t t = 0; t < shape.T; ++t) {
      sum += shape.batch_sizes[t];
      if (shape.batch_sizes[t] < 1 || (t > 0 && shape.batch_sizes[t] > shape.batch_sizes[t - 1])) {
        throw std::runtime_error("batch_sizes must be positive and never increase, got " +
                                 std::to_string(shape.batch_sizes[t]) + " at time step " +
                                 std::to_string(t));
      }
    }
    if (sum != x.size(0)) {
      throw std::runtime_error("batch_sizes must sum to the " + std::to_string(x.size(0)) +
                               " rows of input, got " + std::to_string(sum));
    }
  }

  // The rows of `reset` are those of the input, and a row is a single element.
  void check_reset(const TensorView& reset) const {
    bool fits = reset.type().code == dlpack::kBool && reset.dim() == (packed_ ? 1 : 2);
    for (int64_t i = 0; fits && i < reset.dim(); ++i) {
      fits = reset.size(i) == x.size(i);
    }
    if (!fits) {
      reset.refuse("torch.bool, with one element for each row of input " + name_of(x.shape()));
    }
  }

  bool packed_;
  std::vector<TensorView> w_ih_, w_hh_, b_ih_, b_hh_;
};

template <class T>
void run_forward(const RnnArguments& call, const std::vector<TensorView>& outs,
                 const TensorView& h_n) {
  std::vector<Forward<T>> stack;
  for (int64_t n = 0; n < call.L * call.D; ++n) {
    const TensorView& below = n < call.D ? call.x : outs[n / call.D - 1];
    Forward<T> f{};
    f.reverse = n % call.D == 1, f.I = call.inputs(n);
    if (call.has_table(n)) {
      f.tokens = call.sequence<const int64_t>(below), f.table = call.w_ih(n).data<T>();
    } else {
      f.x = call.sequence<const T>(below), f.w_ih = call.w_ih(n).data<T>();
    }
    f.w_hh = call.w_hh(n).data<T>();
    f.b_ih = call.b_ih(n).data<T>(), f.b_hh = call.b_hh(n).data<T>();
    f.h0 = call.state<T>(call.h0, n), f.h_n = call.state<T>(h_n, n);
    f.h = call.direction_columns<T>(outs[n / call.D], n);
    stack.push_back(f);
  }
  py::gil_scoped_release release;
  forward(call.shape, call.L, call.D, stack.data());
}

void py_forward(py::handle x, py::handle h0, const py::list& weights, py::handle batch_sizes,
                int64_t num_layers, bool batch_first, bool relu, bool bias, int threads,
                const py::list& outs, py::handle h_n, py::handle reset) {
  const RnnArguments call(x, h0, weights, batch_sizes, reset, num_layers, batch_first, relu, bias,
                          threads);
  const std::vector<TensorView> outputs = call.outputs(outs);
  const TensorView last("h_n", h_n);
  last.expect_contiguous(call.dtype, {call.L * call.D, call.shape.B, call.shape.H});
  dispatch_dtype(call.dtype,
                 [&](auto element) { run_forward<decltype(element)>(call, outputs, last); });
}

// What only the backward pass reads and writes. A gradient that is None is not computed.
struct Gradients {
  TensorView dy, dh_n, dx, dh0;
  std::vector<TensorView> outs;
  // For two directions: the gradients that a layer hands to the layer below, in up to two tensors
  // that take turns, because one is read while the next is written.
  std::vector<TensorView> between;
  // One for each direction, or empty. The gradients of the two biases are equal, but torch needs a
  // tensor of its own for each.
  std::vector<TensorView> dw_ih, dw_hh, db, same_db;
};

template <class T> void run_backward(const RnnArguments& call, const Gradients& g) {
  std::vector<Backward<T>> stack;
  for (int64_t n = 0; n < call.L * call.D; ++n) {
    const int64_t layer = n / call.D;
    const TensorView& below = layer == 0 ? call.x : g.outs[layer - 1];
    const TensorView none;
    const auto between = [&](int64_t l) -> const TensorView& {
      return g.between.empty() ? none : g.between[l % g.between.size()];
    };
    const TensorView& dy = layer == call.L - 1 ? g.dy : between(layer);
    const TensorView& dx = layer == 0 ? g.dx : between(layer - 1);
    Backward<T> b{};
    b.reverse = n % call.D == 1, b.I = call.inputs(n);
    b.h = call.direction_columns<const T>(g.outs[layer], n), b.w_hh = call.w_hh(n).data<T>();
    b.dy = call.direction_columns<const T>(dy, n), b.dh_n = call.state<T>(g.dh_n, n);
    b.dh0 = call.state<T>(g.dh0, n), b.h0 = call.state<T>(call.h0, n);
    T* const dw_ih = g.dw_ih.empty() ? nullptr : g.dw_ih[n].data<T>();
    if (call.has_table(n)) {
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
                 const py::list& dw, const py::list& between, py::handle reset) {
  const RnnArguments call(x, h0, weights, batch_sizes, reset, num_layers, batch_first, relu, bias,
                          threads);
  const int64_t B = call.shape.B, H = call.shape.H, n = call.L * call.D, width = call.D * H;
  Gradients g;
  g.outs = call.outputs(outs);
  g.dy = TensorView("the gradient of output", dy), g.dh_n = TensorView("the gradient of h_n", dh_n);
  g.dx = TensorView("dx", dx), g.dh0 = TensorView("dh0", dh0);
  if (g.dy) {
    call.expect_rows(g.dy, width);
  }
  if (g.dx) {
    call.expect_rows(g.dx, call.I);
  }
  for (const TensorView* state : {&g.dh_n, &g.dh0}) {
    if (*state) {
      state->expect_contiguous(call.dtype, {n, B, H});
    }
  }
  for (py::handle object : between) {
    g.between.push_back(call.expect_rows(TensorView("between", object), width));
  }
  const int64_t per = bias ? 4 : 2;
  if (dw.size() != 0 && int64_t(dw.size()) != n * per) {
    throw std::invalid_argument("dw must have no tensor or one for each of " +
                                std::to_string(n * per) + " weights, got " +
                                std::to_string(dw.size()));
  }
  const int64_t handed = call.D == 1 ? 0 : std::min<int64_t>(2, call.L - 1);
  if (int64_t(between.size()) != handed) {
    throw std::invalid_argument("between must have " + std::to_string(handed) + " tensors for " +
                                std::to_string(call.L) + " layers of " + std::to_string(call.D) +
                                " directions, got " + std::to_string(between.size()));
  }
  for (int64_t i = 0; i < n && dw.size() != 0; ++i) {
    const int64_t rows = call.has_table(i) ? call.inputs(i) : H;
    g.dw_ih.push_back(
        TensorView("dw_ih", dw[i * per])
            .expect_contiguous(call.dtype, {rows, call.has_table(i) ? H : call.inputs(i)}));
    g.dw_hh.push_back(TensorView("dw_hh", dw[i * per + 1]).expect_contiguous(call.dtype, {H, H}));
    if (bias) {
      g.db.push_back(TensorView("db", dw[i * per + 2]).expect_contiguous(call.dtype, {H}));
      g.same_db.push_back(TensorView("db", dw[i * per + 3]).expect_contiguous(call.dtype, {H}));
    }
  }
  dispatch_dtype(call.dtype, [&](auto element) { run_backward<decltype(element)>(call, g); });
}

} // namespace

void bind_rnn(py::module_& m) {
  m.def("forward", &py_forward);
  m.def("backward", &py_backward);
}
