// Binds text generation; see api/generate.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../api/generate.h"
#include "bindings.h"

namespace py = pybind11;
using namespace rnnfast;

namespace {

// table: [V, H]. layers: for each layer a pair of a weight, [H, H] in layer 0 and [H, 2H] in the
// layers above, and a bias, [H]. decoder_w: [V, H]. decoder_b: [V].
std::unique_ptr<Sampler> py_sampler(py::handle table_, const py::list& layers,
                                    py::handle decoder_w_, py::handle decoder_b_, bool relu,
                                    double temperature, int64_t top_k, double top_p, int64_t stop,
                                    uint64_t seed, int threads) {
  const TensorView table("table", table_), decoder_w("decoder weight", decoder_w_),
      decoder_b("decoder bias", decoder_b_);
  if (table.dim() != 2 || table.size(0) < 1 || table.size(1) < 1) {
    table.refuse("(V, H) with V and H at least 1");
  }
  const int64_t V = table.size(0), H = table.size(1);
  table.expect_contiguous(Dtype::kFloat32, {V, H});
  decoder_w.expect_contiguous(Dtype::kFloat32, {V, H});
  decoder_b.expect_contiguous(Dtype::kFloat32, {V});
  require(!layers.empty(), "layers must have at least 1 layer", layers.size());
  require(temperature >= 0 && std::isfinite(temperature),
          "temperature must be finite and at least 0", temperature);
  require(top_k >= 1, "top_k must be at least 1", top_k);
  require(top_p > 0 && top_p <= 1, "top_p must be in (0, 1]", top_p);
  const std::string wanted =
      "stop must be a token in [0, " + std::to_string(V) + "), or -1 for none";
  require(stop >= -1 && stop < V, wanted.c_str(), stop);
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
    const TensorView w(w_name.c_str(), w_), b(b_name.c_str(), b_);
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

} // namespace

void bind_generate(py::module_& m) {
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
