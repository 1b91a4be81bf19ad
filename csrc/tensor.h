// What the bindings must know of a torch tensor, without a header of torch: where it lies and how.
// torch hands that out through DLPack's C exchange protocol (DLPack 1.2 and later), in some 20 ns a
// tensor, where an attribute read from Python costs more than that each. And takes tensors by it,
// whose memory is ours.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/pool.h"

namespace rnnfast {

// The binary layout that DLPack fixes; only what is used here has a type.
namespace dlpack {
struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};
enum Code : uint8_t { kInt = 0, kFloat = 2, kBfloat = 4 };
struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
constexpr int32_t kCpu = 1, kCuda = 2;
struct ManagedTensor {
  uint32_t major, minor;
  void* context;
  void (*deleter)(ManagedTensor* self);
  uint64_t flags;
  Tensor tensor;
};
struct ExchangeApi {
  uint32_t major, minor;
  void* previous;
  void *allocate, *managed_from_object;
  int (*managed_to_object)(ManagedTensor* tensor, void** object);
  int (*tensor_from_object)(void* object, Tensor* out);
  void* current_stream;
};

inline const ExchangeApi& torchs_api() {
  static const ExchangeApi* const api = [] {
    const pybind11::object capsule =
        pybind11::module_::import("torch").attr("Tensor").attr("__dlpack_c_exchange_api__");
    void* const pointer = PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
    if (pointer == nullptr) {
      throw pybind11::error_already_set();
    }
    const auto* const found = static_cast<const ExchangeApi*>(pointer);
    if (found->major != 1 || found->tensor_from_object == nullptr ||
        found->managed_to_object == nullptr) {
      throw std::runtime_error("this torch exchanges tensors by DLPack " +
                               std::to_string(found->major) + ", rnnfast wants 1");
    }
    return found;
  }();
  return *api;
}
} // namespace dlpack

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
  return "another dtype";
}

inline std::string name_of(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

// A view of a tensor that somebody else keeps alive; or of none, from None.
class Tensor {
public:
  Tensor() = default;
  Tensor(const char* name, pybind11::handle object, int32_t device = dlpack::kCpu) : name_(name) {
    if (object.is_none()) {
      return;
    }
    read(object);
    if (tensor_.device_type != device) {
      throw std::runtime_error(std::string(name) + " must be on " +
                               (device == dlpack::kCpu ? "cpu" : "cuda") + " like the kernels");
    }
    int64_t* const end = tensor_.shape + tensor_.ndim;
    if (tensor_.data == nullptr && std::find(tensor_.shape, end, 0) == end) {
      throw std::runtime_error(std::string(name) + " must have memory, its storage was freed");
    }
    exists_ = true;
  }

  // Of which shape and type alone will be read: it may be without memory, or None.
  static Tensor like(pybind11::handle object) {
    Tensor tensor;
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

  // nullptr of no tensor.
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

  [[noreturn]] void refuse(const std::string& wanted) const {
    throw std::runtime_error(std::string(name_) + " must be " + wanted + ", got " +
                             name_of(dtype()) + " " + name_of(shape()));
  }

  // Every element in its place, and the elements of a row adjacent. Returns itself.
  const Tensor& expect(Dtype dtype, std::initializer_list<int64_t> shape) const {
    bool fits = dim() == int64_t(shape.size());
    for (size_t i = 0; fits && i < shape.size(); ++i) {
      fits = size(int64_t(i)) == shape.begin()[i];
    }
    if (!fits || this->dtype() != dtype) {
      refuse(std::string(name_of(dtype)) + " " + name_of(std::vector<int64_t>(shape)) +
             " to fit the rest");
    }
    if (dim() > 1 && size(-1) > 1 && stride(-1) != 1) {
      refuse("of contiguous rows");
    }
    return *this;
  }
  const Tensor& expect_contiguous(Dtype dtype, std::initializer_list<int64_t> shape) const {
    expect(dtype, shape);
    int64_t stride = 1;
    for (int64_t i = dim() - 1; i >= 0; --i) {
      if (size(i) > 1 && this->stride(i) != stride) {
        refuse("contiguous");
      }
      stride *= size(i);
    }
    return *this;
  }

private:
  void read(pybind11::handle object) {
    if (dlpack::torchs_api().tensor_from_object(object.ptr(), &tensor_) != 0) {
      throw pybind11::error_already_set();
    }
  }

  const char* name_ = "";
  bool exists_ = false;
  dlpack::Tensor tensor_{};
};

// A new torch tensor on the CPU, contiguous and uninitialised, in memory that is kept for the next
// one when torch lets it go.
inline pybind11::object new_tensor(const std::vector<int64_t>& shape, dlpack::DataType dtype) {
  // Never destroyed: tensors may outlive everything else.
  static SharedPool& pool = *new SharedPool;
  struct Owner {
    dlpack::ManagedTensor managed{};
    size_t size = 1;
    std::vector<int64_t> shape, strides;
  };
  auto owner = std::make_unique<Owner>();
  owner->shape = shape, owner->strides = shape;
  int64_t bytes = dtype.bits / 8;
  for (size_t i = shape.size(); i-- > 0;) {
    if (shape[i] < 0) {
      throw std::invalid_argument("shape must not be negative, got " + name_of(shape));
    }
    owner->strides[i] = bytes / (dtype.bits / 8);
    if (__builtin_mul_overflow(bytes, std::max<int64_t>(shape[i], 1), &bytes)) {
      throw std::bad_alloc();
    }
  }
  owner->size = size_t(bytes);
  dlpack::ManagedTensor& managed = owner->managed;
  managed.tensor = {pool.take(owner->size), dlpack::kCpu,          0, int32_t(shape.size()), dtype,
                    owner->shape.data(),    owner->strides.data(), 0};
  managed.major = 1, managed.context = owner.get();
  managed.deleter = [](dlpack::ManagedTensor* self) {
    const std::unique_ptr<Owner> owner(static_cast<Owner*>(self->context));
    pool.give(self->tensor.data, owner->size);
  };
  void* object = nullptr;
  // torch takes it over, also where it fails.
  if (dlpack::torchs_api().managed_to_object(&owner.release()->managed, &object) != 0) {
    throw pybind11::error_already_set();
  }
  return pybind11::reinterpret_steal<pybind11::object>(static_cast<PyObject*>(object));
}

} // namespace rnnfast
