// Binds the leaky recurrence with a sparse recurrent matrix; see api/reservoir.h.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <variant>

#include "../api/reservoir.h"
#include "bindings.h"

namespace py = pybind11;
using namespace rnnfast;

namespace {

template <class P> Sequence<P> sequence(const TensorView& t) {
  return !t ? Sequence<P>{nullptr, 0, 0} : Sequence<P>{t.data<P>(), t.stride(0), t.stride(1)};
}

// A Reservoir of one of the element types, which Python sees as one class.
class PyReservoir {
public:
  // w_ih: [H, I]. bias: [H] or None. alpha: [H]. W_hh: crow_indices, int64 [H + 1], col_indices,
  // int64 [entries], and values, [entries]. All are contiguous.
  PyReservoir(py::handle w_ih_, py::handle bias_, py::handle alpha_, py::handle crow_indices_,
              py::handle col_indices_, py::handle values_, const std::string& nonlinearity,
              bool current, int threads) {
    const TensorView w_ih("weight_ih", w_ih_), bias("bias", bias_), alpha("alpha", alpha_),
        crow_indices("crow_indices", crow_indices_), col_indices("col_indices", col_indices_),
        values("values", values_);
    require(threads >= 1, "threads must be at least 1", threads);
    dtype_ = w_ih.dtype();
    if (w_ih.dim() != 2 || w_ih.size(0) < 1 || w_ih.size(0) >= int64_t(1) << 32 ||
        (dtype_ != Dtype::kFloat32 && dtype_ != Dtype::kFloat64)) {
      w_ih.refuse("torch.float32 or torch.float64 (H, I) with H at least 1 and less than 2^32");
    }
    if (col_indices.dim() != 1) {
      col_indices.refuse("torch.int64 (entries)");
    }
    H_ = w_ih.size(0), I_ = w_ih.size(1);
    const int64_t entries = col_indices.size(0);
    w_ih.expect_contiguous(dtype_, {H_, I_});
    if (bias) {
      bias.expect_contiguous(dtype_, {H_});
    }
    alpha.expect_contiguous(dtype_, {H_});
    crow_indices.expect_contiguous(Dtype::kInt64, {H_ + 1});
    col_indices.expect_contiguous(Dtype::kInt64, {entries});
    values.expect_contiguous(dtype_, {entries});
    const Nonlinearity f = nonlinearity_of(nonlinearity);
    const auto make = [&](auto element) {
      using T = decltype(element);
      const typename Reservoir<T>::Weights weights{I_,
                                                   H_,
                                                   w_ih.data<const T>(),
                                                   bias.data<const T>(),
                                                   alpha.data<const T>(),
                                                   entries,
                                                   crow_indices.data<const int64_t>(),
                                                   col_indices.data<const int64_t>(),
                                                   values.data<const T>()};
      reservoir_ =
          std::make_unique<Reservoir<T>>(weights, f, current, std::min(threads, usable_cpus()));
    };
    dtype_ == Dtype::kFloat64 ? make(double()) : make(float());
  }

  int64_t units() const { return H_; }

  // x: [T, B, I]. first: [B, H] or None. reset: bool [T, B] or None. addend: [T, B, H] or None.
  // r: [T, B, H] and last: [B, H], written; states: [T, B, H], written, or None.
  void run(py::handle x_, py::handle first_, py::handle reset_, py::handle addend_, py::handle r_,
           py::handle last_, py::handle states_) const {
    const TensorView x("input", x_), first("hx", first_), reset("reset", reset_),
        addend("addend", addend_), r("output", r_), last("last", last_), states("states", states_);
    if (x.dim() != 3 || x.size(0) < 1 || x.size(1) < 1) {
      x.refuse("(T, B, I) with T and B at least 1");
    }
    const int64_t T_ = x.size(0), B = x.size(1);
    x.expect(dtype_, {T_, B, I_});
    r.expect(dtype_, {T_, B, H_});
    last.expect_contiguous(dtype_, {B, H_});
    if (states) {
      states.expect(dtype_, {T_, B, H_});
    }
    if (first) {
      first.expect_contiguous(dtype_, {B, H_});
    }
    if (addend) {
      addend.expect(dtype_, {T_, B, H_});
    }
    if (reset && (reset.type().code != dlpack::kBool || reset.shape() != std::vector{T_, B})) {
      reset.refuse("torch.bool " + name_of(std::vector{T_, B}) + " to fit the input");
    }
    std::visit(
        [&](const auto& reservoir) {
          using T = typename std::decay_t<decltype(*reservoir)>::Element;
          py::gil_scoped_release release;
          reservoir->run({T_, B, sequence<const T>(x), sequence<const T>(addend),
                          sequence<const bool>(reset), first.data<const T>(), sequence<T>(r),
                          last.data<T>(), sequence<T>(states)});
        },
        reservoir_);
  }

private:
  int64_t I_, H_;
  Dtype dtype_;
  std::variant<std::unique_ptr<Reservoir<float>>, std::unique_ptr<Reservoir<double>>> reservoir_;
};

} // namespace

void bind_reservoir(py::module_& m) {
  py::class_<PyReservoir>(m, "Reservoir", py::module_local())
      .def(py::init<py::handle, py::handle, py::handle, py::handle, py::handle, py::handle,
                    const std::string&, bool, int>())
      .def_property_readonly("units", &PyReservoir::units)
      .def("run", &PyReservoir::run);
}
