// Owns the memory that torch gets from the kernels. When torch frees a tensor, its memory is kept
// for the next tensor.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "../cpu/memory_pool.h"
#include "dlpack.h"
#include "tensor_view.h"

namespace rnnfast {

// Return a new contiguous torch tensor on the CPU whose elements are not initialised. Throws
// std::invalid_argument for a negative size and std::bad_alloc if there is no memory.
inline pybind11::object new_tensor(const std::vector<int64_t>& shape, dlpack::DataType dtype) {
  // The pool is never destroyed, because tensors may outlive every other object of the module.
  static ProcessMemoryPool& pool = *new ProcessMemoryPool;
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
  // torch owns the tensor from here on, also if this call fails.
  if (dlpack::torchs_api().managed_to_object(&owner.release()->managed, &object) != 0) {
    throw pybind11::error_already_set();
  }
  return pybind11::reinterpret_steal<pybind11::object>(static_cast<PyObject*>(object));
}

} // namespace rnnfast
