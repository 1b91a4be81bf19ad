// Binds the recurrence, forward and backward; see api/rnn.h.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "rnn_arguments.h"

namespace py = pybind11;
using namespace rnnfast;

namespace {

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
  const RnnArguments call(x, h0, weights, batch_sizes, reset, num_layers, batch_first, relu,
                          bias ? 2 : 0, threads);
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
  const RnnArguments call(x, h0, weights, batch_sizes, reset, num_layers, batch_first, relu,
                          bias ? 2 : 0, threads);
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
