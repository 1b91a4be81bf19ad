// Binds dropout; see api/dropout.h.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "../api/dropout.h"
#include "bindings.h"

namespace py = pybind11;
using namespace rnnfast;

namespace {

void py_dropout(py::handle x_, py::handle seed_, double p, int threads, py::handle out_) {
  const TensorView x("input", x_), seed("seed", seed_), out("out", out_);
  const Dtype dtype = x.dtype();
  if (x.dim() != 1 || dtype == Dtype::kInt64 || dtype == Dtype::kOther) {
    x.refuse("torch.float32, torch.float64, torch.bfloat16 or torch.float16 (n)");
  }
  const int64_t n = x.size(0);
  x.expect_contiguous(dtype, {n});
  seed.expect_contiguous(Dtype::kInt64, {});
  out.expect_contiguous(dtype, {n});
  require(p >= 0 && p <= 1, "p must be in [0, 1]", p);
  require(threads >= 1, "threads must be at least 1", threads);
  dispatch_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const auto number = static_cast<uint64_t>(*seed.data<int64_t>());
    const Dropout<T> call{n, x.data<const T>(), number, p, out.data<T>(), threads};
    py::gil_scoped_release release;
    dropout(call);
  });
}

} // namespace

void bind_dropout(py::module_& m) { m.def("dropout", &py_dropout); }
