// Python's door to the kernels: pointers and sizes in, no maths, no torch. Tensors arrive as data
// pointers (rnnfast/_ops.py has checked dtype, device, sizes and strides, and keeps them alive).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/isa.h"
#include "rnn.h"

namespace py = pybind11;
using namespace rnnfast;

namespace {

// (data, step, row): a Sequence as Python passes it.
using View = std::tuple<uintptr_t, int64_t, int64_t>;

template <class T> T* pointer(uintptr_t address) { return reinterpret_cast<T*>(address); }

template <class T> Sequence<T> sequence(const View& v) {
  return {pointer<T>(std::get<0>(v)), std::get<1>(v), std::get<2>(v)};
}

void check(const Shape& s, int64_t I, int64_t H) {
  if (s.T < 1 || s.B < 1 || H < 1 || I < 0 || s.threads < 1) {
    throw std::invalid_argument(
        "T, B, H and threads must be at least 1, got T=" + std::to_string(s.T) +
        " B=" + std::to_string(s.B) + " I=" + std::to_string(I) + " H=" + std::to_string(H) +
        " threads=" + std::to_string(s.threads));
  }
  for (int64_t t = 0; s.batch_sizes != nullptr && t < s.T; ++t) {
    if (s.batch_sizes[t] < 1 || s.batch_sizes[t] > (t == 0 ? s.B : s.batch_sizes[t - 1]) ||
        (t == 0 && s.batch_sizes[0] != s.B)) {
      throw std::runtime_error("batch_sizes must begin with B, be positive and never increase");
    }
  }
}

template <class T>
void py_forward(int64_t T_, int64_t B, int64_t I, int64_t H, uintptr_t batch_sizes, bool reverse,
                bool relu, int threads, const View& x, uintptr_t w_ih, uintptr_t w_hh,
                uintptr_t b_ih, uintptr_t b_hh, uintptr_t h0, const View& h, const View& tokens,
                uintptr_t table) {
  const Shape shape{T_, B, pointer<const int64_t>(batch_sizes), reverse, relu, threads};
  py::gil_scoped_release release;
  check(shape, I, H);
  forward(Forward<T>{shape, I, H, sequence<const T>(x), pointer<const T>(w_ih),
                     pointer<const T>(w_hh), pointer<const T>(b_ih), pointer<const T>(b_hh),
                     pointer<const T>(h0), sequence<T>(h), sequence<const int64_t>(tokens),
                     pointer<const T>(table)});
}

template <class T>
void py_backward(int64_t T_, int64_t B, int64_t I, int64_t H, uintptr_t batch_sizes, bool reverse,
                 bool relu, int threads, const View& h, uintptr_t w_hh, const View& dy,
                 uintptr_t dh_n, const View& dpre, uintptr_t dh0, const View& x, uintptr_t w_ih,
                 uintptr_t h0, const View& dx, bool add_dx, uintptr_t dw_ih, uintptr_t dw_hh,
                 uintptr_t db, const View& tokens, uintptr_t dtable) {
  const Shape shape{T_, B, pointer<const int64_t>(batch_sizes), reverse, relu, threads};
  py::gil_scoped_release release;
  check(shape, I, H);
  backward(Backward<T>{
      shape, H, sequence<const T>(h), pointer<const T>(w_hh), sequence<const T>(dy),
      pointer<const T>(dh_n), sequence<T>(dpre), pointer<T>(dh0), I, sequence<const T>(x),
      pointer<const T>(w_ih), pointer<const T>(h0), sequence<T>(dx), add_dx, pointer<T>(dw_ih),
      pointer<T>(dw_hh), pointer<T>(db), sequence<const int64_t>(tokens), pointer<T>(dtable)});
}

} // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of rnnfast; called by rnnfast._ops alone.";
  m.def("forward_float32", &py_forward<float>);
  m.def("forward_float64", &py_forward<double>);
  m.def("backward_float32", &py_backward<float>);
  m.def("backward_float64", &py_backward<double>);
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Isa* isa : available_isas()) {
      names.emplace_back(isa->name);
    }
    return names;
  });
  m.def("isa", [] { return std::string(current_isa().name); });
  m.def("set_isa", &set_isa);
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  m.attr("compiler") = __VERSION__;
}
