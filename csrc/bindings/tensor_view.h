// Reads where a torch tensor lies in memory and how, and checks that it fits a kernel.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "dlpack.h"

namespace rnnfast {

// The dtypes that a kernel may take.
enum class Dtype { kInt64, kFloat32, kFloat64, kBfloat16, kFloat16, kOther };

inline const char* name_of(Dtype dtype) {
  switch (dtype) {
  case Dtype::kInt64:
    return "torch.int64";
  case Dtype::kFloat32:
    return "torch.float32";
  case Dtype::kFloat64:
    return "torch.float64";
  case Dtype::kBfloat16:
    return "torch.bfloat16";
  case Dtype::kFloat16:
    return "torch.float16";
  case Dtype::kOther:
    break;
  }
  return "a dtype that no kernel takes";
}

inline std::string name_of(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

// A view of a torch tensor, or of no tensor when it is made from None. The caller keeps the tensor
// alive for as long as the view is used.
class TensorView {
public:
  TensorView() = default;
  // `name` is the name of the argument in messages, and must outlive the view. Throws
  // std::runtime_error if the tensor is not on a device of this type or has no memory.
  TensorView(const char* name, pybind11::handle object, int32_t device = dlpack::kCpu)
      : name_(name) {
    if (object.is_none()) {
      return;
    }
    read(object);
    if (tensor_.device_type != device) {
      throw std::runtime_error(std::string(name) + " must be on " + device_name(device) +
                               ", where this kernel runs, got a tensor on " +
                               device_name(tensor_.device_type));
    }
    int64_t* const end = tensor_.shape + tensor_.ndim;
    if (tensor_.data == nullptr && std::find(tensor_.shape, end, 0) == end) {
      throw std::runtime_error(std::string(name) +
                               " must have memory, but its storage has been freed");
    }
    exists_ = true;
  }

  // A view whose shape and dtype alone will be read. The tensor may be None or have no memory.
  static TensorView like(pybind11::handle object) {
    TensorView tensor;
    if (!object.is_none()) {
      tensor.read(object);
      tensor.exists_ = true;
    }
    return tensor;
  }

  explicit operator bool() const { return exists_; }
  dlpack::DataType type() const { return tensor_.dtype; }
  int32_t device_id() const { return tensor_.device_id; }
  int64_t dim() const { return tensor_.ndim; }
  int64_t size(int64_t i) const { return tensor_.shape[i < 0 ? i + tensor_.ndim : i]; }
  int64_t stride(int64_t i) const { return tensor_.strides[i < 0 ? i + tensor_.ndim : i]; }
  std::vector<int64_t> shape() const { return {tensor_.shape, tensor_.shape + tensor_.ndim}; }

  Dtype dtype() const {
    const dlpack::DataType type = tensor_.dtype;
    return type.code == dlpack::kInt && type.bits == 64     ? Dtype::kInt64
           : type.code == dlpack::kFloat && type.bits == 32 ? Dtype::kFloat32
           : type.code == dlpack::kFloat && type.bits == 64 ? Dtype::kFloat64
           : type.code == dlpack::kFloat && type.bits == 16 ? Dtype::kFloat16
           : type.code == dlpack::kBfloat                   ? Dtype::kBfloat16
                                                            : Dtype::kOther;
  }

  // The element at `offset`, or nullptr if there is no tensor.
  template <class T> T* data([[maybe_unused]] int64_t offset = 0) const {
    if (!exists_) {
      return nullptr;
    }
    char* const first = static_cast<char*>(tensor_.data) + tensor_.byte_offset;
    if constexpr (std::is_void_v<T>) {
      return first;
    } else {
      return reinterpret_cast<T*>(first) + offset;
    }
  }

  // Throw std::runtime_error, which says what is wanted and what was given.
  [[noreturn]] void refuse(const std::string& wanted) const {
    throw std::runtime_error(std::string(name_) + " must be " + wanted + ", got " +
                             name_of(dtype()) + " " + name_of(shape()));
  }

  // Throws unless the tensor has this dtype and shape and the elements of each row are adjacent in
  // memory. Returns the view itself.
  const TensorView& expect(Dtype dtype, std::initializer_list<int64_t> shape) const {
    bool fits = dim() == int64_t(shape.size());
    for (size_t i = 0; fits && i < shape.size(); ++i) {
      fits = size(int64_t(i)) == shape.begin()[i];
    }
    if (!fits || this->dtype() != dtype) {
      refuse(std::string(name_of(dtype)) + " " + name_of(std::vector<int64_t>(shape)) +
             " to fit the rest of the arguments");
    }
    if (dim() > 1 && size(-1) > 1 && stride(-1) != 1) {
      refuse_strides("adjacent elements in each row");
    }
    return *this;
  }
  // This makes the same check, and the tensor must also be contiguous as a whole.
  const TensorView& expect_contiguous(Dtype dtype, std::initializer_list<int64_t> shape) const {
    expect(dtype, shape);
    int64_t stride = 1;
    for (int64_t i = dim() - 1; i >= 0; --i) {
      if (size(i) > 1 && this->stride(i) != stride) {
        refuse_strides("the strides of a contiguous tensor");
      }
      stride *= std::max<int64_t>(size(i), 1); // as torch counts for tensors without elements
    }
    return *this;
  }

private:
  static std::string device_name(int32_t type) {
    return type == dlpack::kCpu    ? "cpu"
           : type == dlpack::kCuda ? "cuda"
                                   : "a device of DLPack's type " + std::to_string(type);
  }

  [[noreturn]] void refuse_strides(const std::string& wanted) const {
    throw std::runtime_error(
        std::string(name_) + " must have " + wanted + ", got shape " + name_of(shape()) +
        " with strides " + name_of(std::vector<int64_t>(tensor_.strides, tensor_.strides + dim())));
  }

  void read(pybind11::handle object) {
    if (dlpack::torchs_api().tensor_from_object(object.ptr(), &tensor_) != 0) {
      throw pybind11::error_already_set();
    }
  }

  const char* name_ = "";
  bool exists_ = false;
  dlpack::Tensor tensor_{};
};

} // namespace rnnfast
