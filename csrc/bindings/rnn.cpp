// Binds the recurrence of plain and gated units, forward and backward; see api/rnn.h.
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

// The tensors of gated units beside those of plain units. Those of c are None for a GRU.
struct GateTensors {
  GatedCell cell;
  TensorView c0, c_n, dc0, dc_n;
  std::vector<TensorView> saved; // one for each layer, or empty

  GateTensors(const RnnArguments& call, GatedCell cell_, py::handle c0_, const py::list& saved_)
      : cell(cell_), c0("cx", c0_) {
    expect_state(call, c0);
    if (saved_.size() != 0) {
      saved = call.of_layers("saved", saved_, saved_of(cell));
    }
  }

  // Throw if `state` is given to a GRU, or has a wrong shape.
  void expect_state(const RnnArguments& call, const TensorView& state) const {
    if (state && cell == GatedCell::kGru) {
      state.refuse("None for a GRU");
    }
    if (state) {
      state.expect_contiguous(call.dtype, {call.L * call.D, call.shape.B, call.shape.H});
    }
  }
};

GatedCell gated_cell_of(const std::string& name) {
  if (name != "gru" && name != "lstm") {
    throw std::invalid_argument("cell must be 'gru' or 'lstm', got '" + name + "'");
  }
  return gated(cell_of(name));
}

// `g` is nullptr for plain units.
template <class T>
void run_forward(const RnnArguments& call, const std::vector<TensorView>& outs,
                 const TensorView& h_n, const GateTensors* g) {
  std::vector<Forward<T>> stack;
  std::vector<Gates<T>> gates(g != nullptr ? call.L * call.D : 0);
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
    if (g != nullptr) {
      gates[n] = {g->cell, call.state<T>(g->c0, n), call.state<T>(g->c_n, n), {}};
      if (!g->saved.empty()) {
        gates[n].saved = call.direction_columns<T>(g->saved[n / call.D], n, saved_of(g->cell));
      }
      f.gates = &gates[n];
    }
    stack.push_back(f);
  }
  py::gil_scoped_release release;
  forward(call.shape, call.L, call.D, stack.data());
}

void check_and_run_forward(const RnnArguments& call, const py::list& outs, py::handle h_n,
                           const GateTensors* gates) {
  const std::vector<TensorView> outputs = call.of_layers("outs", outs);
  const TensorView last("h_n", h_n);
  last.expect_contiguous(call.dtype, {call.L * call.D, call.shape.B, call.shape.H});
  dispatch_dtype(call.dtype,
                 [&](auto element) { run_forward<decltype(element)>(call, outputs, last, gates); });
}

void py_forward(py::handle x, py::handle h0, const py::list& weights, py::handle batch_sizes,
                int64_t num_layers, bool batch_first, bool relu, bool bias, int threads,
                const py::list& outs, py::handle h_n, py::handle reset) {
  const RnnArguments call(x, h0, weights, batch_sizes, reset, num_layers, batch_first, relu,
                          bias ? 2 : 0, threads);
  check_and_run_forward(call, outs, h_n, nullptr);
}

void py_gated_forward(py::handle x, py::handle h0, py::handle c0, const py::list& weights,
                      py::handle batch_sizes, const std::string& name, int64_t num_layers,
                      bool batch_first, bool bias, int threads, const py::list& outs,
                      py::handle h_n, py::handle c_n, const py::list& saved, py::handle reset) {
  const GatedCell cell = gated_cell_of(name);
  const RnnArguments call(x, h0, weights, batch_sizes, reset, num_layers, batch_first, false,
                          bias ? 2 : 0, threads, gates_of(cell));
  GateTensors gates(call, cell, c0, saved);
  gates.c_n = TensorView("c_n", c_n);
  gates.expect_state(call, gates.c_n);
  check_and_run_forward(call, outs, h_n, &gates);
}

// What only the backward pass reads and writes. A gradient that is None is not computed.
struct Gradients {
  TensorView dy, dh_n, dx, dh0;
  std::vector<TensorView> outs;
  // For two directions: the gradients that a layer hands to the layer below, in up to two tensors
  // that take turns, because one is read while the next is written.
  std::vector<TensorView> between;
  // One for each direction, or empty. Except for a GRU the gradients of the two biases are equal,
  // but torch needs a tensor of its own for each.
  std::vector<TensorView> dw_ih, dw_hh, db, db_hh;
};

template <class T>
void run_backward(const RnnArguments& call, const Gradients& g, const GateTensors* gated) {
  std::vector<Backward<T>> stack;
  std::vector<GatesBackward<T>> gates(gated != nullptr ? call.L * call.D : 0);
  const bool equal = gated == nullptr || gated->cell == GatedCell::kLstm;
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
    if (gated != nullptr) {
      gates[n] = {gated->cell,
                  call.direction_columns<const T>(gated->saved[layer], n, saved_of(gated->cell)),
                  call.state<T>(gated->dc_n, n), call.state<T>(gated->dc0, n),
                  equal || g.db_hh.empty() ? nullptr : g.db_hh[n].data<T>()};
      b.gates = &gates[n];
    }
    stack.push_back(b);
  }
  py::gil_scoped_release release;
  backward(call.shape, call.L, call.D, stack.data());
  for (size_t n = 0; equal && n < g.db.size(); ++n) {
    std::memcpy(g.db_hh[n].data<T>(), stack[n].db, call.G * call.shape.H * sizeof(T));
  }
}

void check_and_run_backward(const RnnArguments& call, bool bias, py::handle dy, py::handle dh_n,
                            const py::list& outs, py::handle dx, py::handle dh0, const py::list& dw,
                            const py::list& between, const GateTensors* gates) {
  const int64_t B = call.shape.B, H = call.shape.H, n = call.L * call.D, width = call.D * H,
                outputs = call.G * H;
  Gradients g;
  g.outs = call.of_layers("outs", outs);
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
    const int64_t rows = call.has_table(i) ? call.inputs(i) : outputs;
    g.dw_ih.push_back(
        TensorView("dw_ih", dw[i * per])
            .expect_contiguous(call.dtype, {rows, call.has_table(i) ? outputs : call.inputs(i)}));
    g.dw_hh.push_back(
        TensorView("dw_hh", dw[i * per + 1]).expect_contiguous(call.dtype, {outputs, H}));
    if (bias) {
      g.db.push_back(TensorView("db", dw[i * per + 2]).expect_contiguous(call.dtype, {outputs}));
      g.db_hh.push_back(TensorView("db", dw[i * per + 3]).expect_contiguous(call.dtype, {outputs}));
    }
  }
  dispatch_dtype(call.dtype,
                 [&](auto element) { run_backward<decltype(element)>(call, g, gates); });
}

void py_backward(py::handle dy, py::handle dh_n, const py::list& outs, py::handle x, py::handle h0,
                 const py::list& weights, py::handle batch_sizes, int64_t num_layers,
                 bool batch_first, bool relu, bool bias, int threads, py::handle dx, py::handle dh0,
                 const py::list& dw, const py::list& between, py::handle reset) {
  const RnnArguments call(x, h0, weights, batch_sizes, reset, num_layers, batch_first, relu,
                          bias ? 2 : 0, threads);
  check_and_run_backward(call, bias, dy, dh_n, outs, dx, dh0, dw, between, nullptr);
}

void py_gated_backward(py::handle dy, py::handle dh_n, py::handle dc_n, const py::list& outs,
                       const py::list& saved, py::handle x, py::handle h0, py::handle c0,
                       const py::list& weights, py::handle batch_sizes, const std::string& name,
                       int64_t num_layers, bool batch_first, bool bias, int threads, py::handle dx,
                       py::handle dh0, py::handle dc0, const py::list& dw, const py::list& between,
                       py::handle reset) {
  const GatedCell cell = gated_cell_of(name);
  const RnnArguments call(x, h0, weights, batch_sizes, reset, num_layers, batch_first, false,
                          bias ? 2 : 0, threads, gates_of(cell));
  GateTensors gates(call, cell, c0, saved);
  if (gates.saved.empty()) {
    throw std::invalid_argument("saved must have one tensor for each of " + std::to_string(call.L) +
                                " layers, got none");
  }
  gates.dc_n = TensorView("the gradient of c_n", dc_n), gates.dc0 = TensorView("dc0", dc0);
  gates.expect_state(call, gates.dc_n), gates.expect_state(call, gates.dc0);
  check_and_run_backward(call, bias, dy, dh_n, outs, dx, dh0, dw, between, &gates);
}

} // namespace

void bind_rnn(py::module_& m) {
  m.def("forward", &py_forward);
  m.def("backward", &py_backward);
  m.def("gated_forward", &py_gated_forward);
  m.def("gated_backward", &py_gated_backward);
}
