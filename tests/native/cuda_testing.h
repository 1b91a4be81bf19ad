// What the tests of the CUDA kernels have in common: formats, tensors, and where their rows lie.
#pragma once

#include "cuda/plan.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

namespace rnnfast::cuda {

[[noreturn]] inline void fail(const std::string& message) {
  std::fprintf(stderr, "FAILED: %s\n", message.c_str());
  std::exit(1);
}

inline uint64_t random_state = 1;
inline double uniform() { // in [-1, 1)
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return double(int64_t(random_state) >> 11) / double(int64_t(1) << 52);
}

// Rounds to `bits` of mantissa after the leading one, ties to even. It computes with numbers and
// not with bit patterns, so that it shares no mistake with the kernels.
inline double round_to(double x, int bits) {
  int exponent;
  const double mantissa = std::frexp(x, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(mantissa, bits + 1)), exponent - bits - 1);
}

struct Format {
  Precision precision;
  const char* name;
  size_t stored;                 // bytes
  int stored_bits, operand_bits; // of mantissa
  double tolerance;              // relative to 1 + |expected|, for sums that round differently
};
inline const Format kFormats[] = {
    {Precision::kFloat32, "float32", 4, 23, 23, 2e-6},
    {Precision::kTf32, "tf32", 4, 23, 10, 4e-4},
    {Precision::kBfloat16, "bfloat16", 2, 7, 7, 1.2e-2},
    {Precision::kFloat16, "float16", 2, 10, 10, 1.5e-3},
    {Precision::kFloat64, "float64", 8, 52, 52, 1e-13},
};

// A tensor in a format, in an allocation of exactly its size.
class Array {
public:
  Array(Precision precision, size_t bytes, int64_t n)
      : precision_(precision), bytes_(bytes), data_(n * bytes, char(0x5a)) {}
  void* data() { return data_.data(); }
  void set(int64_t i, double x) {
    char* const at = data_.data() + i * bytes_;
    if (bytes_ == 8) {
      std::memcpy(at, &x, 8);
    } else if (bytes_ == 4) {
      const float f = float(x);
      std::memcpy(at, &f, 4);
    } else {
      const uint16_t u = precision_ == Precision::kFloat16 ? device::to_float16(float(x))
                                                           : device::to_bfloat16(float(x));
      std::memcpy(at, &u, 2);
    }
  }
  double get(int64_t i) const {
    const char* const at = data_.data() + i * bytes_;
    if (bytes_ == 8) {
      double x;
      std::memcpy(&x, at, 8);
      return x;
    }
    if (bytes_ == 4) {
      float x;
      std::memcpy(&x, at, 4);
      return x;
    }
    uint16_t u;
    std::memcpy(&u, at, 2);
    return precision_ == Precision::kFloat16 ? device::from_float16(u) : device::from_bfloat16(u);
  }
  bool untouched(int64_t i) const {
    return std::all_of(data_.begin() + i * bytes_, data_.begin() + (i + 1) * bytes_,
                       [](char c) { return c == 0x5a; });
  }
  void fill() {
    for (int64_t i = 0; i < int64_t(data_.size() / bytes_); ++i) {
      set(i, uniform());
    }
  }

private:
  Precision precision_;
  size_t bytes_;
  std::vector<char> data_;
};

enum class Layout { kTime, kBatchFirst, kHalf, kPacked };

struct Rows { // where rows of H elements lie, `pitch` elements apart
  Layout layout;
  int64_t step, row, size;
  std::vector<int64_t> starts; // the first row of each step in a packed batch

  Rows(Layout layout_, int64_t T, int64_t B, const std::vector<int64_t>& lengths, int64_t pitch)
      : layout(layout_) {
    row = layout == Layout::kBatchFirst ? T * pitch : pitch;
    step = layout == Layout::kBatchFirst ? pitch : B * pitch;
    starts.push_back(0);
    for (int64_t t = 0; t < T; ++t) {
      starts.push_back(starts.back() + std::count_if(lengths.begin(), lengths.end(),
                                                     [t](int64_t n) { return n > t; }));
    }
    size = layout == Layout::kPacked ? starts.back() * pitch : T * B * pitch;
    step = layout == Layout::kPacked ? std::numeric_limits<int64_t>::max() / 2 : step;
  }
  int64_t at(int64_t t, int64_t b) const {
    return layout == Layout::kPacked ? (starts[t] + b) * row : t * step + b * row;
  }
};

inline void compare(const std::string& name, const char* what, double found, double expected,
                    double tolerance) {
  if (!(std::abs(found - expected) <= tolerance * (1 + std::abs(expected)))) {
    fail(name + ": " + what + " " + std::to_string(found) + ", expected " +
         std::to_string(expected));
  }
}

// Compares the nonlinearities of leaky units, one by one, with their formulas.
void check_nonlinearities();

// Compares one case of leaky units with the loop over time (test_cuda_leaky.cpp). Returns how many
// cuts of it ran.
int check_leaky(int64_t T, int64_t B, int64_t H, Layout layout, bool backward, unsigned bits,
                const Format& format, Kernel kernel);

} // namespace rnnfast::cuda
