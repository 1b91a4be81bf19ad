// The part of DLPack's C exchange protocol (DLPack 1.2 and later) that the bindings use. With it
// the bindings read and make torch tensors without a header of torch. Reading a tensor takes about
// 20 ns, whereas every attribute that is read through Python costs more than that.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace rnnfast {

// The binary layout is fixed by DLPack. Members that are not used here are declared as void*.
namespace dlpack {
struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};
enum Code : uint8_t { kInt = 0, kFloat = 2, kBfloat = 4, kBool = 6 };
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

// Return the functions that torch exchanges tensors with. Throws std::runtime_error if this torch
// uses a different major version of DLPack.
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
      throw std::runtime_error(
          "torch must exchange tensors by DLPack 1.2 or a later 1.x, got DLPack " +
          std::to_string(found->major) + "." + std::to_string(found->minor) +
          ". Install a version of torch that rnnfast supports");
    }
    return found;
  }();
  return *api;
}
} // namespace dlpack

} // namespace rnnfast
