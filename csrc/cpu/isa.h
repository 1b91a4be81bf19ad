// What the vector code offers the time loop, and the choice among its versions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../api/element.h"

namespace rnnfast {

enum class Activation { kIdentity, kTanh, kRelu, kTanhGrad, kReluGrad };

// What elements of type S are added up in.
template <class S> struct SumOf {
  using Type = S;
};
template <> struct SumOf<bfloat16> {
  using Type = float;
};
template <> struct SumOf<float16> {
  using Type = float;
};
template <class S> using Sum = typename SumOf<S>::Type;

// Everywhere: S is the type of the caller's tensors, O that of the left factors of the products:
// Sum<S>, or bfloat16 where the CPU multiplies pairs of them.

// One fused product:  result = act(a w + sums_before + addend [1] + addend [2])  for `rows` rows
// and the columns [col_begin, col_end) of N. Every row is a pointer plus a stride in elements. The
// result goes to as many of the last three as are not nullptr.
template <class S, class O = S> struct FusedProduct {
  int64_t rows, K, N;
  int64_t col_begin, col_end; // col_begin is a multiple of the panel width; col_end too, or N
  const O* a;                 // [rows, K]; element K is 0 where K is odd and O bfloat16
  int64_t a_stride;
  const S* w; // K x N, packed by VectorKernels::pack
  Activation act;
  const Sum<S>* sums_before; // [rows, N] or nullptr; stride 0 repeats one row, as a bias
  int64_t sums_before_stride;
  const S* addend; // [rows, N] or nullptr
  int64_t addend_stride;
  const S* addend2; // [rows, N] or nullptr
  int64_t addend2_stride;
  const S* h; // [rows, N] what the forward wrote; read by the two gradients
  int64_t h_stride;
  O* operand; // [rows, N rounded up to the vector]: for the next product
  int64_t operand_stride;
  Sum<S>* sums; // [rows, N rounded up to the vector]
  int64_t sums_stride;
  S* out; // [rows, N]
  int64_t out_stride;
  bool far; // w and sums are not in the nearer caches: to be fetched ahead
};

// The most rows that OuterProducts sums at a time: those of its factors stay in cache beside one
// another.
constexpr int64_t kOuterRows = 256;

// A sum of outer products:  out[m, n] (+)= sum over k of p[k, m] q[k, n],  k < K <= kOuterRows,
// m < M, n < N.
template <class S, class O = S> struct OuterProducts {
  int64_t K, M, N;
  const O* p; // [K, M]
  int64_t p_stride;
  const O* q;  // [K, N], packed by VectorKernels::pack_rows
  Sum<S>* out; // [M, N], contiguous
  bool add;
};

template <class S, class O = S> struct VectorKernels {
  int vector; // elements of Sum<S>
  int panel;  // columns of a packed panel
  // Element (k, n) of the packed matrix is w[n * K + k] if `transpose`, else w[k * N + n]. Packs
  // the panels that hold columns [col_begin, col_end); the columns past N in the last one are
  // zeros. `packed` has packed_size(K, N) elements.
  void (*pack)(const S* w, bool transpose, int64_t K, int64_t N, int64_t col_begin, int64_t col_end,
               S* packed);
  // A right factor for OuterProducts, from its K rows; nullptr: zeros.
  void (*pack_rows)(const S* const* rows, int64_t K, int64_t N, O* packed);
  // A row of n elements as a left factor, with zeros up to the vector.
  void (*widen)(const S* row, int64_t n, O* operand);
  void (*narrow)(const Sum<S>* row, int64_t n, S* out);
  // A row of n elements, in memory for whole vectors, becomes exp(row - max), zeros up to the
  // vector; max is the largest of them, and is taken as 0 there if it is minus infinity. Also
  // gives max and the sum of the exponentials, which with a NaN or plus infinity is NaN.
  void (*exponentials)(Sum<S>* row, int64_t n, Sum<S>* max, Sum<S>* sum);
  void (*fused_product)(const FusedProduct<S, O>&);
  void (*outer_products)(const OuterProducts<S, O>&);
  // Of the elements [begin, end), begin a multiple of the vector: 0 where the random number is less
  // than `dropped`, else x scale.
  void (*dropout)(const S* x, int64_t begin, int64_t end, uint64_t seed, uint32_t dropped,
                  Sum<S> scale, S* out);

  int64_t packed_size(int64_t K, int64_t N) const {
    return (K + 1) / 2 * 2 * ((N + panel - 1) / panel * panel);
  }
};

struct KernelSet {
  VectorKernels<float> f32;
  VectorKernels<double> f64;
  VectorKernels<bfloat16, float> bf16;
  VectorKernels<float16, float> f16;
  // One update of GloVe, with an entry's vectors [2, D + 1]; see glove.h.
  float (*glove_update)(float* word, float* context, int64_t D, float log_x, float weight,
                        float lr);
};

struct Isa {
  const char* name;
  bool (*available)();
  const KernelSet* kernels;
  const VectorKernels<bfloat16>* bf16_pairs; // or nullptr
  bool (*enable)() = nullptr;                // to be called before the first use
};

// One per isa_*.cpp.
extern const Isa kGeneric;
#if defined(__x86_64__)
extern const Isa kAvx2, kAvx512OnAvx2, kAvx512, kAvx512Bf16;
#if !defined(__clang__) && __GNUC__ >= 11
#define RNNFAST_AMX
extern const Isa kAmx, kAmxEmulated;
#endif
extern const KernelSet kAvx512Kernels; // of all from kAvx512 on
#endif

// Those this CPU and operating system can run; the last is the fastest that has been tried.
std::vector<const Isa*> available_isas();
// The one in use: set_isa, else the environment's RNNFAST_ISA, else the last of available_isas().
const Isa& current_isa();
// Empty: back to the default. Throws std::invalid_argument for a name that is not available.
void set_isa(const std::string& name);

template <class S, class O = S> const VectorKernels<S, O>& current_kernels();
template <> inline const VectorKernels<float>& current_kernels() {
  return current_isa().kernels->f32;
}
template <> inline const VectorKernels<double>& current_kernels() {
  return current_isa().kernels->f64;
}
template <> inline const VectorKernels<bfloat16, float>& current_kernels() {
  return current_isa().kernels->bf16;
}
template <> inline const VectorKernels<float16, float>& current_kernels() {
  return current_isa().kernels->f16;
}
template <> inline const VectorKernels<bfloat16>& current_kernels() {
  return *current_isa().bf16_pairs;
}

} // namespace rnnfast
