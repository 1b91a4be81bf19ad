// Binds text generation; see api/generate.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../api/generate.h"
#include "bindings.h"

namespace py = pybind11;
using namespace rnnfast;

namespace {

// With G gates, table: [V, G H]. layers: for each layer W_hh, [G H, H], W_ih, [G H, H] or None in
// layer 0, b_ih and b_hh, [G H]. decoder_w: [V, H]. decoder_b: [V].
std::unique_ptr<Sampler> py_sampler(py::handle table_, const py::list& layers,
                                    py::handle decoder_w_, py::handle decoder_b_,
                                    const std::string& cell_name, double temperature, int64_t top_k,
                                    double top_p, int64_t stop, uint64_t seed, int threads) {
  const TensorView table("table", table_), decoder_w("decoder weight", decoder_w_),
      decoder_b("decoder bias", decoder_b_);
  const Cell cell = cell_of(cell_name);
  const int64_t G = gates_of(cell);
  if (table.dim() != 2 || table.size(0) < 1 || table.size(1) < 1 || table.size(1) % G != 0) {
    table.refuse(G == 1 ? "(V, H) with V and H at least 1"
                        : "(V, G H) with V and H at least 1 and G = 3 gates of a GRU or 4 of an "
                          "LSTM");
  }
  const int64_t V = table.size(0), H = table.size(1) / G;
  table.expect_contiguous(Dtype::kFloat32, {V, G * H});
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
                      cell,
                      table.data<const float>(),
                      decoder_w.data<const float>(),
                      decoder_b.data<const float>(),
                      {}};
  for (py::handle tensors : layers) {
    const auto [w_hh_, w_ih_, b_ih_, b_hh_] =
        tensors.cast<std::tuple<py::object, py::object, py::object, py::object>>();
    const std::string layer = " of layer " + std::to_string(model.layers.size());
    const std::string names[] = {"weight_hh" + layer, "weight_ih" + layer, "bias_ih" + layer,
                                 "bias_hh" + layer};
    const TensorView w_hh(names[0].c_str(), w_hh_), w_ih(names[1].c_str(), w_ih_),
        b_ih(names[2].c_str(), b_ih_), b_hh(names[3].c_str(), b_hh_);
    w_hh.expect_contiguous(Dtype::kFloat32, {G * H, H});
    if (bool(w_ih) == model.layers.empty()) {
      throw std::invalid_argument(names[1] + (w_ih ? " must be None: layer 0 has the table"
                                                   : " must be a tensor, got None"));
    }
    if (w_ih) {
      w_ih.expect_contiguous(Dtype::kFloat32, {G * H, H});
    }
    b_ih.expect_contiguous(Dtype::kFloat32, {G * H});
    b_hh.expect_contiguous(Dtype::kFloat32, {G * H});
    model.layers.push_back({w_hh.data<const float>(), w_ih.data<const float>(),
                            b_ih.data<const float>(), b_hh.data<const float>()});
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
