// Binds leaky units and the random numbers of their noise; see api/leaky.h.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "rnn_arguments.h"

namespace py = pybind11;
using namespace rnnfast;

namespace {

// The arguments that forward and backward have in common.
class LeakyArguments {
public:
  RnnArguments rnn;
  TensorView alpha;
  bool current;
  Nonlinearity f;

  LeakyArguments(py::handle x, py::handle h0, const py::list& weights, py::handle batch_sizes,
                 py::handle reset, bool batch_first, bool bias, py::handle alpha_, bool current_,
                 const std::string& nonlinearity, int threads)
      : rnn(x, h0, weights, batch_sizes, reset, 1, batch_first, false, bias, threads),
        alpha("alpha", alpha_), current(current_), f(nonlinearity_of(nonlinearity)) {
    if (rnn.D != 1) {
      throw std::invalid_argument("leaky units have one direction, got " + std::to_string(rnn.D));
    }
    alpha.expect_contiguous(rnn.dtype, {rnn.shape.H});
  }

  // Return a view of a tensor that has a row of H elements for every row of the input, or is None.
  TensorView rows(const char* name, py::handle object) const {
    const TensorView tensor(name, object);
    return tensor ? rnn.expect_rows(tensor, rnn.shape.H) : tensor;
  }
};

template <class T>
void run_forward(const LeakyArguments& call, Leak<T> leak, const TensorView& out,
                 const TensorView& h_n) {
  const RnnArguments& rnn = call.rnn;
  leak.current = call.current, leak.f = call.f, leak.alpha = call.alpha.data<T>();
  Forward<T> f{};
  f.I = rnn.I;
  if (rnn.one_hot) {
    f.tokens = rnn.sequence<const int64_t>(rnn.x), f.table = rnn.w_ih(0).data<T>();
  } else {
    f.x = rnn.sequence<const T>(rnn.x), f.w_ih = rnn.w_ih(0).data<T>();
  }
  f.w_hh = rnn.w_hh(0).data<T>(), f.b_ih = rnn.b_ih(0).data<T>();
  f.h0 = rnn.h0.data<T>(), f.h_n = h_n.data<T>(), f.h = rnn.sequence<T>(out), f.leak = &leak;
  py::gil_scoped_release release;
  forward(rnn.shape, 1, 1, &f);
}

void py_forward(py::handle x, py::handle h0, const py::list& weights, py::handle batch_sizes,
                bool batch_first, bool bias, py::handle alpha, bool current,
                const std::string& nonlinearity, int threads, py::handle noise_,
                py::handle noise_scale_, py::handle seed_, py::handle out_, py::handle h_n_,
                py::handle states_, py::handle saved_, py::handle reset) {
  const LeakyArguments call(x, h0, weights, batch_sizes, reset, batch_first, bias, alpha, current,
                            nonlinearity, threads);
  const RnnArguments& rnn = call.rnn;
  const TensorView noise = call.rows("noise", noise_), out = call.rows("out", out_),
                   states = call.rows("states", states_), saved = call.rows("saved", saved_),
                   noise_scale("noise_scale", noise_scale_), seed("seed", seed_), h_n("h_n", h_n_);
  h_n.expect_contiguous(rnn.dtype, {1, rnn.shape.B, rnn.shape.H});
  if (noise_scale) {
    noise_scale.expect_contiguous(rnn.dtype, {rnn.shape.H});
    seed.expect_contiguous(Dtype::kInt64, {});
  }
  dispatch_dtype(rnn.dtype, [&](auto element) {
    using T = decltype(element);
    Leak<T> leak{};
    leak.noise = rnn.sequence<const T>(noise), leak.noise_scale = noise_scale.data<T>();
    leak.seed = noise_scale ? static_cast<uint64_t>(*seed.data<int64_t>()) : 0;
    leak.states = rnn.sequence<T>(states), leak.saved = rnn.sequence<T>(saved);
    run_forward(call, leak, out, h_n);
  });
}

// What only the backward pass reads and writes. A gradient that is None is not computed.
struct Gradients {
  TensorView dy, dh_n, dstates, out, states, saved, dx, dh0, dalpha, dnoise;
  TensorView dw_ih, dw_hh, db;
};

template <class T> void run_backward(const LeakyArguments& call, const Gradients& g) {
  const RnnArguments& rnn = call.rnn;
  LeakBackward<T> leak{};
  leak.current = call.current, leak.f = call.f, leak.alpha = call.alpha.data<T>();
  leak.states = rnn.sequence<const T>(g.states), leak.saved = rnn.sequence<const T>(g.saved);
  leak.dstates = rnn.sequence<const T>(g.dstates), leak.dnoise = rnn.sequence<T>(g.dnoise);
  leak.dalpha = g.dalpha.data<T>();
  Backward<T> b{};
  b.I = rnn.I, b.h = rnn.sequence<const T>(g.out), b.w_hh = rnn.w_hh(0).data<T>();
  b.dy = rnn.sequence<const T>(g.dy), b.dh_n = g.dh_n.data<T>(), b.dh0 = g.dh0.data<T>();
  b.h0 = rnn.h0.data<T>();
  if (rnn.one_hot) {
    b.tokens = rnn.sequence<const int64_t>(rnn.x), b.dtable = g.dw_ih.data<T>();
  } else {
    b.x = rnn.sequence<const T>(rnn.x), b.w_ih = rnn.w_ih(0).data<T>();
    b.dx = rnn.sequence<T>(g.dx), b.dw_ih = g.dw_ih.data<T>();
  }
  b.dw_hh = g.dw_hh.data<T>(), b.db = g.db.data<T>(), b.leak = &leak;
  py::gil_scoped_release release;
  backward(rnn.shape, 1, 1, &b);
}

void py_backward(py::handle dy, py::handle dh_n, py::handle dstates, py::handle out,
                 py::handle states, py::handle saved, py::handle x, py::handle h0,
                 const py::list& weights, py::handle batch_sizes, bool batch_first, bool bias,
                 py::handle alpha, bool current, const std::string& nonlinearity, int threads,
                 py::handle dx, py::handle dh0, const py::list& dw, py::handle dalpha,
                 py::handle dnoise, py::handle reset) {
  const LeakyArguments call(x, h0, weights, batch_sizes, reset, batch_first, bias, alpha, current,
                            nonlinearity, threads);
  const RnnArguments& rnn = call.rnn;
  const int64_t B = rnn.shape.B, H = rnn.shape.H;
  Gradients g;
  g.dy = call.rows("the gradient of output", dy), g.out = call.rows("out", out);
  g.dstates = call.rows("the gradient of the states", dstates);
  g.states = call.rows("states", states), g.saved = call.rows("saved", saved);
  g.dnoise = call.rows("dnoise", dnoise);
  g.dx = TensorView("dx", dx);
  if (g.dx) {
    rnn.expect_rows(g.dx, rnn.I);
  }
  g.dh_n = TensorView("the gradient of h_n", dh_n), g.dh0 = TensorView("dh0", dh0);
  for (const TensorView* state : {&g.dh_n, &g.dh0}) {
    if (*state) {
      state->expect_contiguous(rnn.dtype, {1, B, H});
    }
  }
  g.dalpha = TensorView("dalpha", dalpha);
  if (g.dalpha) {
    g.dalpha.expect_contiguous(rnn.dtype, {H});
  }
  if ((!current || g.dalpha) && !g.saved) {
    throw std::invalid_argument("saved must be given for a rate and for the gradient of alpha");
  }
  if (current && g.dalpha && !g.states) {
    throw std::invalid_argument("states must be given for the gradient of alpha of a current");
  }
  if (dw.size() != 0 && dw.size() != weights.size()) {
    throw std::invalid_argument("dw must have no tensor or one for each of " +
                                std::to_string(weights.size()) + " weights, got " +
                                std::to_string(dw.size()));
  }
  if (dw.size() != 0) {
    const int64_t rows = rnn.one_hot ? rnn.I : H, columns = rnn.one_hot ? H : rnn.I;
    g.dw_ih = TensorView("dw_ih", dw[0]).expect_contiguous(rnn.dtype, {rows, columns});
    g.dw_hh = TensorView("dw_hh", dw[1]).expect_contiguous(rnn.dtype, {H, H});
    if (bias) {
      g.db = TensorView("db", dw[2]).expect_contiguous(rnn.dtype, {H});
    }
  }
  dispatch_dtype(rnn.dtype, [&](auto element) { run_backward<decltype(element)>(call, g); });
}

void py_normal(py::handle seed_, int threads, py::handle out_) {
  const TensorView seed("seed", seed_), out("out", out_);
  const Dtype dtype = out.dtype();
  if (out.dim() != 2 || dtype == Dtype::kInt64 || dtype == Dtype::kOther) {
    out.refuse("torch.float32, torch.float64, torch.bfloat16 or torch.float16 (rows, N)");
  }
  out.expect_contiguous(dtype, {out.size(0), out.size(1)});
  seed.expect_contiguous(Dtype::kInt64, {});
  require(threads >= 1, "threads must be at least 1", threads);
  dispatch_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const auto number = static_cast<uint64_t>(*seed.data<int64_t>());
    const Normal<T> call{out.size(0), out.size(1), number, out.data<T>(), threads};
    py::gil_scoped_release release;
    normal(call);
  });
}

} // namespace

void bind_leaky(py::module_& m) {
  m.def("leaky_forward", &py_forward);
  m.def("leaky_backward", &py_backward);
  m.def("normal", &py_normal);
}
