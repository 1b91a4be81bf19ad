// Binds the CUDA kernels, which cuda/recurrence.h describes. It includes no header of CUDA.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/recurrence.h"
#include "bindings.h"

namespace py = pybind11;
using namespace rnnfast;

namespace {

std::optional<cuda::Kernel> kernel_of(const std::optional<std::string>& name) {
  if (!name) {
    return std::nullopt;
  }
  for (const cuda::Kernel kernel :
       {cuda::Kernel::kCluster, cuda::Kernel::kGrid, cuda::Kernel::kStep}) {
    if (*name == cuda::kKernelNames[int(kernel)]) {
      return kernel;
    }
  }
  throw std::invalid_argument("kernel must be cluster, grid or step, got " + *name);
}

cuda::Precision precision_of(const std::string& name) {
  const std::pair<const char*, cuda::Precision> all[] = {
      {"float32", cuda::Precision::kFloat32},   {"tf32", cuda::Precision::kTf32},
      {"bfloat16", cuda::Precision::kBfloat16}, {"float16", cuda::Precision::kFloat16},
      {"float64", cuda::Precision::kFloat64},
  };
  for (const auto& [known, precision] : all) {
    if (name == known) {
      return precision;
    }
  }
  throw std::invalid_argument("no CUDA kernel for " + name);
}

Dtype stored(cuda::Precision precision) {
  switch (precision) {
  case cuda::Precision::kBfloat16:
    return Dtype::kBfloat16;
  case cuda::Precision::kFloat16:
    return Dtype::kFloat16;
  case cuda::Precision::kFloat64:
    return Dtype::kFloat64;
  default:
    return Dtype::kFloat32;
  }
}

cuda::Problem problem_of(int64_t T, int64_t B, int64_t H, int directions, bool backward,
                         const std::string& precision) {
  return {T, B, H, directions, backward, false, precision_of(precision), nullptr};
}

// Returns (the kernel, whether torch's own path should be faster, the reason).
py::tuple py_choose(int64_t T, int64_t B, int64_t H, int directions, bool backward,
                    const std::string& precision, const std::optional<std::string>& force) {
  const std::optional<cuda::Kernel> forced = kernel_of(force);
  const cuda::Choice choice = cuda::choose(problem_of(T, B, H, directions, backward, precision),
                                           forced ? &*forced : nullptr);
  return py::make_tuple(cuda::kKernelNames[int(choice.kernel)], choice.torch, choice.reason);
}

// Returns the size of the workspace, which does not depend on T. Every call asks for it.
size_t py_workspace(int64_t B, int64_t H, int directions, bool backward,
                    const std::string& precision, const std::optional<std::string>& force) {
  const std::optional<cuda::Kernel> forced = kernel_of(force);
  return cuda::workspace(problem_of(1, B, H, directions, backward, precision),
                         forced ? &*forced : nullptr);
}

bool py_prefers_torch(int64_t B, int64_t H, int directions, const std::string& precision) {
  return cuda::prefers_torch(problem_of(1, B, H, directions, false, precision));
}

// Runs one layer. Each direction is a tuple (reverse, w_hh, in, h, out, b_ih, b_hh, begin, end),
// which recurrence.h describes. Sequences are (T, B, H), or (B, T, H) with `batch_first`. With
// `starts` (T + 1) they are packed, (N, H). `reset`, which may be None, has the same rows, each one
// bool. Leaky units have `leak`, a tuple (current, nonlinearity, alpha, first, dstates, kept,
// carry), and otherwise it is None. The device and the stream must be the current ones of the
// caller.
void py_run(int64_t T, int64_t B, int64_t H, bool backward, bool relu, const std::string& precision,
            const std::optional<std::string>& force, bool batch_first, py::handle starts_,
            py::handle reset_, const std::optional<py::tuple>& leak_, const py::list& directions,
            py::handle workspace_, uintptr_t stream) {
  const std::optional<cuda::Kernel> forced = kernel_of(force);
  const cuda::Problem shape{
      T, B, H, int(directions.size()), backward, relu, precision_of(precision), nullptr};
  const Dtype dtype = stored(shape.precision);
  const Dtype sums = dtype == Dtype::kFloat64 ? dtype : Dtype::kFloat32;
  int32_t device = -1; // of all tensors
  const auto tensor = [&](const char* name, py::handle object) {
    const TensorView t(name, object, dlpack::kCuda);
    if (t && device >= 0 && t.device_id() != device) {
      throw std::runtime_error(std::string(name) + " must be on cuda:" + std::to_string(device) +
                               " like the rest, got cuda:" + std::to_string(t.device_id()));
    }
    device = t ? t.device_id() : device;
    return t;
  };
  const TensorView starts = tensor("starts", starts_);
  cuda::Problem problem = shape;
  if (starts) {
    starts.expect_contiguous(Dtype::kInt64, {T + 1});
    problem.starts = starts.data<const int64_t>();
  }
  int64_t rows = -1; // N of a packed batch, the same in all tensors
  const auto sequence = [&](const TensorView& t, Dtype wanted) {
    Sequence<void> s{nullptr, 0, 0};
    if (!t) {
      return s;
    }
    if (starts) {
      if (t.dim() != 2 || t.size(0) < 1 || t.size(0) > INT32_MAX) {
        t.refuse("(N, H), with N below 2^31");
      }
      rows = rows < 0 ? t.size(0) : rows;
      t.expect(wanted, {rows, H});
    } else {
      batch_first ? t.expect(wanted, {B, T, H}) : t.expect(wanted, {T, B, H});
      s.step = t.stride(batch_first);
    }
    s.data = t.data<void>(), s.row = t.stride(!starts && !batch_first);
    return s;
  };
  const auto optional = [&](const TensorView& t, std::initializer_list<int64_t> wanted) {
    return t ? t.expect_contiguous(dtype, wanted).data<void>() : nullptr;
  };
  cuda::Direction all[2];
  if (directions.size() < 1 || directions.size() > 2) {
    throw std::invalid_argument("directions must be 1 or 2, got " +
                                std::to_string(directions.size()));
  }
  for (size_t i = 0; i < directions.size(); ++i) {
    const py::tuple t = directions[i].cast<py::tuple>();
    if (t.size() != 9) {
      throw std::invalid_argument("a direction must be a tuple of 9");
    }
    cuda::Direction& d = all[i];
    d.reverse = t[0].cast<bool>();
    d.w_hh = tensor("weight_hh", t[1]).expect_contiguous(dtype, {H, H}).data<void>();
    const Sequence<void> in = sequence(tensor("in", t[2]), backward ? dtype : sums);
    const Sequence<void> h = sequence(tensor("h", t[3]), dtype);
    d.in = {in.data, in.step, in.row}, d.h = {h.data, h.step, h.row};
    d.out = sequence(tensor("out", t[4]), dtype);
    d.b_ih = optional(tensor("bias_ih", t[5]), {H});
    d.b_hh = optional(tensor("bias_hh", t[6]), {H});
    d.begin = optional(tensor("begin", t[7]), {B, H});
    d.end = optional(tensor("end", t[8]), {B, H});
    if (d.out.data == nullptr || (backward ? d.h.data : d.in.data) == nullptr) {
      throw std::invalid_argument("out, and h or in, must be given");
    }
  }
  cuda::Leaky leak{};
  if (leak_) {
    const py::tuple& t = *leak_;
    if (t.size() != 7 || directions.size() != 1 || all[0].reverse) {
      throw std::invalid_argument("leak must be a tuple of 7, for one direction forward in time");
    }
    leak.current = t[0].cast<bool>(), leak.f = nonlinearity_of(t[1].cast<std::string>());
    leak.alpha = tensor("alpha", t[2]).expect_contiguous(dtype, {H}).data<void>();
    leak.first = optional(tensor("first", t[3]), {B, H});
    const Sequence<void> dstates = sequence(tensor("the gradient of the states", t[4]), dtype);
    leak.dstates = {dstates.data, dstates.step, dstates.row};
    const Sequence<void> kept = sequence(tensor("kept", t[5]), dtype);
    leak.kept = kept.data;
    const Sequence<void>& out = all[0].out;
    if (kept.data != nullptr && (kept.step != out.step || kept.row != out.row)) {
      throw std::invalid_argument("kept must have the strides of out");
    }
    if (leak.current && (backward ? leak.first : all[0].begin) == nullptr) {
      throw std::invalid_argument("r of a current before the first step must be given");
    }
    leak.carry = tensor("carry", t[6]).expect_contiguous(sums, {B, H}).data<void>();
    problem.leak = &leak;
  }
  const TensorView reset = tensor("reset", reset_);
  if (reset) {
    const std::vector<int64_t> wanted = starts        ? std::vector{rows}
                                        : batch_first ? std::vector{B, T}
                                                      : std::vector{T, B};
    if (reset.type().code != dlpack::kBool || reset.shape() != wanted) {
      reset.refuse("torch.bool " + name_of(wanted));
    }
    problem.reset = {reset.data<const bool>(), starts ? 0 : reset.stride(batch_first),
                     reset.stride(!starts && !batch_first)};
  }
  const TensorView workspace = tensor("workspace", workspace_);
  const py::gil_scoped_release release;
  cuda::run(problem, forced ? &*forced : nullptr, all, workspace.data<void>(),
            reinterpret_cast<void*>(stream));
}

void py_upload(const std::vector<int64_t>& numbers, py::handle to_, uintptr_t stream) {
  const TensorView to("to", to_, dlpack::kCuda);
  to.expect_contiguous(Dtype::kInt64, {int64_t(numbers.size())});
  cuda::upload(numbers.data(), int64_t(numbers.size()), to.data<int64_t>(),
               reinterpret_cast<void*>(stream));
}

} // namespace

void bind_cuda(py::module_& m) {
  // Errors of the CUDA runtime. Wrong arguments raise ValueError or RuntimeError.
  py::register_exception<cuda::Error>(m, "CudaError", PyExc_RuntimeError);
  m.def("cuda_choose", &py_choose);
  m.def("cuda_workspace", &py_workspace);
  m.def("cuda_prefers_torch", &py_prefers_torch);
  m.def("cuda_run", &py_run);
  m.def("cuda_upload", &py_upload);
}
