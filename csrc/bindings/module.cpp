// The module rnnfast._C: all bindings, new tensors, and the choice of the instruction set.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "../cpu/isa.h"
#include "bindings.h"
#include "torch_memory.h"

namespace py = pybind11;
using namespace rnnfast;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of rnnfast. Only rnnfast's operators call this module.";
  bind_rnn(m);
  bind_leaky(m);
  bind_loss(m);
  bind_dropout(m);
  bind_generate(m);
  bind_stepper(m);
  bind_reservoir(m);
  bind_glove(m);
#if defined(RNNFAST_CUDA)
  bind_cuda(m);
  m.attr("cuda") = true;
#else
  m.attr("cuda") = false;
#endif
  m.def("empty", [](const std::vector<int64_t>& shape, py::handle like) {
    return new_tensor(shape, TensorView::like(like).type());
  });
  m.def("empty_like", [](const std::vector<py::object>& tensors) {
    std::vector<py::object> made;
    for (const py::object& object : tensors) {
      const TensorView like = TensorView::like(object);
      made.push_back(like ? new_tensor(like.shape(), like.type()) : py::none());
    }
    return made;
  });
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Isa* isa : available_isas()) {
      names.emplace_back(isa->name);
    }
    return names;
  });
  m.def("isa", [] { return std::string(current_isa().name); });
  m.def("set_isa", &set_isa);
#if defined(RNNFAST_LIBGOMP)
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  m.attr("compiler") = __VERSION__;
}
