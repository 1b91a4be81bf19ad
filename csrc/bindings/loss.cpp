// Binds the linear layer with cross-entropy; see api/loss.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <vector>

#include "../api/loss.h"
#include "bindings.h"

namespace py = pybind11;
using namespace rnnfast;

namespace {

template <class T>
void run_cross_entropy(const TensorView& x, const TensorView& w, const TensorView& target,
                       const TensorView& b, const TensorView& dloss, std::optional<double> scale,
                       int threads, const TensorView& loss, const TensorView& dx,
                       const TensorView& dw, const TensorView& db) {
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

// With `scale`, `loss` is one number, which is the sum of the losses times `scale`, and the
// gradients are those of this number. Without it, `loss` is [N] and the gradients are for `dloss`,
// [N].
void py_linear_cross_entropy(py::handle x_, py::handle w_, py::handle target_, py::handle b_,
                             py::handle dloss_, std::optional<double> scale, int threads,
                             py::handle loss_, py::handle dx_, py::handle dw_, py::handle db_) {
  const TensorView x("input", x_), w("linear_weight", w_), target("target", target_),
      b("linear_bias", b_), dloss("dloss", dloss_), loss("loss", loss_), dx("dx", dx_),
      dw("dw", dw_), db("db", db_);
  const Dtype dtype = x.dtype();
  if ((dtype != Dtype::kFloat32 && dtype != Dtype::kFloat64) || x.dim() != 2 || x.size(0) < 1 ||
      x.size(1) < 1) {
    x.refuse("torch.float32 or torch.float64 (N, H) with N and H at least 1");
  }
  const int64_t N = x.size(0), H = x.size(1);
  if (w.dim() != 2 || w.size(0) < 1) {
    w.refuse("(V, H) with V at least 1");
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
    throw std::invalid_argument(scale ? "dloss must be None if there is a scale, got a tensor"
                                      : "dloss must be a tensor if a gradient is wanted and there "
                                        "is no scale, got None");
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

} // namespace

void bind_loss(py::module_& m) { m.def("linear_cross_entropy", &py_linear_cross_entropy); }
