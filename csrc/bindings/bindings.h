// What the bindings of all operations share. Each binding checks what its kernel trusts, releases
// the GIL and calls the kernel. rnnfast's Python code has allocated every tensor that a kernel
// writes, and it keeps every tensor alive during the call.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>

#include <sched.h>

#include "../api/element.h"
#include "../api/gated.h"
#include "../api/leaky.h"
#include "tensor_view.h"

// Each adds the functions of one operation to the module.
void bind_rnn(pybind11::module_& m);
void bind_leaky(pybind11::module_& m);
void bind_loss(pybind11::module_& m);
void bind_dropout(pybind11::module_& m);
void bind_generate(pybind11::module_& m);
void bind_stepper(pybind11::module_& m);
void bind_reservoir(pybind11::module_& m);
void bind_glove(pybind11::module_& m);
void bind_cuda(pybind11::module_& m);

namespace rnnfast {

// Throw std::invalid_argument unless `holds`. `what` says what is wanted and `got` what was given.
template <class T> void require(bool holds, const char* what, T got) {
  if (!holds) {
    throw std::invalid_argument(std::string(what) + ", got " + std::to_string(got));
  }
}

// The number of CPUs that this process may run on. Threads that wait for one another at every time
// step must run at the same time: with more threads than CPUs each wait would last until the
// operating system switches threads.
inline int usable_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    return CPU_COUNT(&set);
  }
#endif
  return std::numeric_limits<int>::max();
}

// Return the nonlinearity of leaky units that has this name. Throws std::invalid_argument.
inline Nonlinearity nonlinearity_of(const std::string& name) {
  constexpr std::array<std::string_view, 5> kNames = {"tanh", "relu", "sigmoid", "softplus",
                                                      "linear"};
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (name == kNames[i]) {
      return static_cast<Nonlinearity>(i);
    }
  }
  throw std::invalid_argument("nonlinearity must be tanh, relu, sigmoid, softplus or linear, got " +
                              name);
}

// Return the cell that has this name. Throws std::invalid_argument.
inline Cell cell_of(const std::string& name) {
  constexpr std::array<std::string_view, 4> kNames = {"tanh", "relu", "gru", "lstm"};
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (name == kNames[i]) {
      return static_cast<Cell>(i);
    }
  }
  throw std::invalid_argument("cell must be 'tanh', 'relu', 'gru' or 'lstm', got '" + name + "'");
}

// Call `run` with an element of the type that the kernels use for `dtype`. The caller has refused
// all dtypes except the four floating-point ones.
template <class Run> void dispatch_dtype(Dtype dtype, const Run& run) {
  switch (dtype) {
  case Dtype::kFloat64:
    return run(double());
  case Dtype::kBfloat16:
    return run(bfloat16());
  case Dtype::kFloat16:
    return run(float16());
  default:
    return run(float());
  }
}

} // namespace rnnfast
