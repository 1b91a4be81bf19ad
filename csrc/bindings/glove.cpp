// Binds the training of GloVe vectors; see api/glove.h.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "../api/glove.h"
#include "bindings.h"

namespace py = pybind11;
using namespace rnnfast;

namespace {

// starts: [P * P + 1]. shifts: [P]. row, column, log_x and weight: [N]. words and contexts:
// [V, 2, D + 1]. Returns the sum of the terms of all entries.
double py_glove_epoch(py::handle starts_, py::handle shifts_, py::handle row_, py::handle column_,
                      py::handle log_x_, py::handle weight_, py::handle words_,
                      py::handle contexts_, double lr, int threads) {
  const TensorView starts("starts", starts_), shifts("shifts", shifts_), row("row", row_),
      column("column", column_), log_x("log_x", log_x_), weight("weight", weight_),
      words("words", words_), contexts("contexts", contexts_);
  if (words.dim() != 3 || words.size(0) < 1 || words.size(1) != 2 || words.size(2) < 2) {
    words.refuse("(V, 2, D + 1) with V and D at least 1");
  }
  if (shifts.dim() != 1 || shifts.size(0) < 1) {
    shifts.refuse("(P) with P at least 1");
  }
  if (row.dim() != 1 || row.size(0) < 1) {
    row.refuse("(N) with N at least 1");
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

void bind_glove(py::module_& m) { m.def("glove_epoch", &py_glove_epoch); }
