// Binds the network that gets one time step at a time; see api/stepper.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
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
  PyStepper(int64_t B, const py::list& weights, const std::string& cell_name, int64_t biases,
            int threads, py::handle alpha_, bool current, const std::string& nonlinearity)
      : B_(B), cell_(cell_of(cell_name)) {
    require(biases >= 0 && biases <= 2, "biases must be 0, 1 or 2", biases);
    const int64_t per = 2 + biases, L = int64_t(weights.size()) / per;
    require(B >= 1, "batch_size must be at least 1", B);
    require(threads >= 1, "threads must be at least 1", threads);
    require(L >= 1 && L * per == int64_t(weights.size()),
            "weights must have 2 tensors and the biases for each layer", weights.size());
    L_ = L;
    const int64_t G = gates_of(cell_);
    const TensorView first("weight_ih", weights[0]);
    if (first.dim() != 2 || first.size(0) < 1 || first.size(0) % G != 0) {
      first.refuse((G == 1 ? "(H, I)" : "(" + std::to_string(G) + " * H, I)") +
                   std::string(" with H at least 1"));
    }
    H_ = first.size(0) / G, I_ = first.size(1), dtype_ = first.dtype();
    if (dtype_ == Dtype::kInt64 || dtype_ == Dtype::kOther) {
      first.refuse("torch.float32, torch.float64, torch.bfloat16 or torch.float16");
    }
    const TensorView alpha("alpha", alpha_);
    if (alpha) {
      require(!is_gated(cell_), "alpha must be None for units with several gates", G);
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
        layers.push_back({weight(0, "weight_ih", {G * H_, l == 0 ? I_ : H_}),
                          weight(1, "weight_hh", {G * H_, H_}),
                          biases > 0 ? weight(2, "bias_ih", {G * H_}) : nullptr,
                          biases > 1 ? weight(3, "bias_hh", {G * H_}) : nullptr,
                          alpha.data<const T>(alpha ? l * H_ : 0), current, f});
      }
      stepper_ =
          std::make_unique<Stepper<T>>(B, I_, H_, cell_, std::min(threads, usable_cpus()), layers);
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

  // The number of tensors of the state: h, and c of an LSTM.
  int states() const { return cell_ == Cell::kLstm ? 2 : 1; }

  void read_state(const py::args& states) const {
    const auto [h, c] = views(states);
    visit([&, &h = h, &c = c](auto& stepper, auto element) {
      using T = decltype(element);
      stepper.read_state(h.template data<T>(), c.template data<T>());
    });
  }

  void write_state(const py::args& states) {
    const auto [h, c] = views(states);
    visit([&, &h = h, &c = c](auto& stepper, auto element) {
      using T = decltype(element);
      stepper.write_state(h.template data<const T>(), c.template data<const T>());
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
  // The tensors of the state, each [L, B, H]. That of c is a view of no tensor if there is no c.
  std::array<TensorView, 2> views(const py::args& tensors) const {
    require(int(tensors.size()) == states(),
            "the state must have one tensor, or h and c of an LSTM", tensors.size());
    std::array<TensorView, 2> result;
    for (size_t i = 0; i < tensors.size(); ++i) {
      result[i] = TensorView("state", tensors[i]).expect_contiguous(dtype_, {L_, B_, H_});
    }
    return result;
  }

  template <class Run> void visit(const Run& run) const {
    dispatch_dtype(dtype_, [&](auto element) {
      run(*std::get<std::unique_ptr<Stepper<decltype(element)>>>(stepper_), element);
    });
  }

  int64_t B_, L_, I_, H_;
  Cell cell_;
  Dtype dtype_;
  std::variant<std::unique_ptr<Stepper<float>>, std::unique_ptr<Stepper<double>>,
               std::unique_ptr<Stepper<bfloat16>>, std::unique_ptr<Stepper<float16>>>
      stepper_;
};

} // namespace

void bind_stepper(py::module_& m) {
  py::class_<PyStepper>(m, "Stepper", py::module_local())
      .def(py::init<int64_t, const py::list&, const std::string&, int64_t, int, py::handle, bool,
                    const std::string&>())
      .def_property_readonly("states", &PyStepper::states)
      .def("step", &PyStepper::step)
      .def("read_state", &PyStepper::read_state)
      .def("write_state", &PyStepper::write_state)
      .def("reset", &PyStepper::reset);
}
