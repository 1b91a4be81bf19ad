// Binds the network that gets one time step at a time; see api/stepper.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "../api/stepper.h"
#include "bindings.h"

namespace py = pybind11;
using namespace rnnfast;

namespace {

// A Stepper of one of the element types, which Python sees as one class.
class PyStepper {
public:
  // weights: for each layer w_ih, w_hh and `biases` of b_ih and b_hh, all contiguous. alpha: None,
  // or [L, H] for leaky units of the kind that `current` and `nonlinearity` say.
  PyStepper(int64_t B, const py::list& weights, bool relu, int64_t biases, int threads,
            py::handle alpha_, bool current, const std::string& nonlinearity)
      : B_(B) {
    require(biases >= 0 && biases <= 2, "biases must be 0, 1 or 2", biases);
    const int64_t per = 2 + biases, L = int64_t(weights.size()) / per;
    require(B >= 1, "batch_size must be at least 1", B);
    require(threads >= 1, "threads must be at least 1", threads);
    require(L >= 1 && L * per == int64_t(weights.size()),
            "weights must have 2 tensors and the biases for each layer", weights.size());
    L_ = L;
    const TensorView first("weight_ih", weights[0]);
    if (first.dim() != 2 || first.size(0) < 1) {
      first.refuse("(H, I) with H at least 1");
    }
    H_ = first.size(0), I_ = first.size(1), dtype_ = first.dtype();
    if (dtype_ == Dtype::kInt64 || dtype_ == Dtype::kOther) {
      first.refuse("torch.float32, torch.float64, torch.bfloat16 or torch.float16");
    }
    const TensorView alpha("alpha", alpha_);
    if (alpha) {
      alpha.expect_contiguous(dtype_, {L, H_});
    }
    const Nonlinearity f = nonlinearity_of(nonlinearity);
    dispatch_dtype(dtype_, [&](auto element) {
      using T = decltype(element);
      std::vector<typename Stepper<T>::Layer> layers;
      for (int64_t l = 0; l < L; ++l) {
        const auto weight = [&](int64_t n, const char* name, std::initializer_list<int64_t> shape) {
          return TensorView(name, weights[l * per + n])
              .expect_contiguous(dtype_, shape)
              .template data<const T>();
        };
        layers.push_back({weight(0, "weight_ih", {H_, l == 0 ? I_ : H_}),
                          weight(1, "weight_hh", {H_, H_}),
                          biases > 0 ? weight(2, "bias_ih", {H_}) : nullptr,
                          biases > 1 ? weight(3, "bias_hh", {H_}) : nullptr,
                          alpha.data<const T>(alpha ? l * H_ : 0), current, f});
      }
      stepper_ =
          std::make_unique<Stepper<T>>(B, I_, H_, relu, std::min(threads, usable_cpus()), layers);
    });
  }

  void step(py::handle x_, py::handle out_) {
    const TensorView x("input", x_), out("output", out_);
    x.expect(dtype_, {B_, I_});
    out.expect_contiguous(dtype_, {B_, H_});
    visit([&](auto& stepper, auto element) {
      using T = decltype(element);
      const int64_t row = x.stride(0);
      py::gil_scoped_release release;
      stepper.step(x.data<const T>(), row, out.data<T>());
    });
  }

  void read_state(py::handle h_) const {
    const TensorView h("state", h_);
    h.expect_contiguous(dtype_, {L_, B_, H_});
    visit([&](auto& stepper, auto element) { stepper.read_state(h.data<decltype(element)>()); });
  }

  void write_state(py::handle h_) {
    const TensorView h("state", h_);
    h.expect_contiguous(dtype_, {L_, B_, H_});
    visit([&](auto& stepper, auto element) {
      stepper.write_state(h.data<const decltype(element)>());
    });
  }

  void reset(const std::vector<int64_t>& rows) {
    for (int64_t row : rows) {
      if (row < 0 || row >= B_) {
        throw std::out_of_range("rows must be in [0, " + std::to_string(B_) + "), got " +
                                std::to_string(row));
      }
    }
    visit([&](auto& stepper, auto) {
      for (int64_t row : rows) {
        stepper.reset(row);
      }
    });
  }

private:
  template <class Run> void visit(const Run& run) const {
    dispatch_dtype(dtype_, [&](auto element) {
      run(*std::get<std::unique_ptr<Stepper<decltype(element)>>>(stepper_), element);
    });
  }

  int64_t B_, L_, I_, H_;
  Dtype dtype_;
  std::variant<std::unique_ptr<Stepper<float>>, std::unique_ptr<Stepper<double>>,
               std::unique_ptr<Stepper<bfloat16>>, std::unique_ptr<Stepper<float16>>>
      stepper_;
};

} // namespace

void bind_stepper(py::module_& m) {
  py::class_<PyStepper>(m, "Stepper", py::module_local())
      .def(py::init<int64_t, const py::list&, bool, int64_t, int, py::handle, bool,
                    const std::string&>())
      .def("step", &PyStepper::step)
      .def("read_state", &PyStepper::read_state)
      .def("write_state", &PyStepper::write_state)
      .def("reset", &PyStepper::reset);
}
