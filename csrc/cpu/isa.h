// The functions that the vector code offers to the time loops, and the choice of the instruction
// set that they are compiled for.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "../api/element.h"
#include "../api/gated.h"
#include "../api/leaky.h"
#include "sparse.h"

namespace rnnfast {

// kTanhGrad and kReluGrad multiply by the derivative, which is computed from the output h.
enum class Activation { kIdentity, kTanh, kRelu, kTanhGrad, kReluGrad };

// The type in which elements of type S are added up.
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

// In all of csrc/cpu, S is the element type of the caller's tensors. O is the element type of the
// left factors of the products: bfloat16 if the CPU multiplies pairs of bfloat16, otherwise Sum<S>.

// A time step of leaky units, whose equations are in api/leaky.h. Instead of an activation, it is
// applied to the result of a FusedProduct, called v here.
//
// forward   v is p. carry: the state, which is replaced by the next one. `operand` and `out` of the
//           product become r.
// backward  v is the gradient of r without what passes through the leak. h of the product is f(p)
//           for a rate and r for a current. carry: the gradient that the state receives through the
//           leak from the later step, which is replaced by that for the earlier step. `operand`
//           becomes the gradient of p, `out` that of the state. addend2 is added to the latter, for
//           a current only.
template <class S> struct LeakStep {
  bool current, backward;
  Nonlinearity f;
  const Sum<S>* alpha; // [N rounded up to whole vectors]
  Sum<S>* carry;       // [rows, N rounded up to whole vectors]
  int64_t carry_stride;
  S* states; // [rows, N], written in a forward step: the state; nullptr: not wanted
  int64_t states_stride;
  S* saved; // [rows, N], written in a forward step: Leak::saved; nullptr: not wanted
  int64_t saved_stride;
};

// A time step of gated units, whose equations are in api/gated.h. It is applied to a FusedProduct
// instead of an activation.
//
// forward   N counts units, and w and sums_before have the sums of all gates in the order of
//           UnitLayout in gates.h. carry: h of a GRU or c of an LSTM, which is replaced by the next
//           one. `operand` and `out` of the product become h.
// backward  The result is the gradient of h. carry: the gradient that h or c receives elementwise
//           from the later step, which is replaced by that for the earlier step. Instead of one
//           row of N elements, `operand` gets the gradients of the arguments of the gates one after
//           another, N elements each; GateSlots in gates.h has their order. `sums` and `out` are
//           not written.
template <class S> struct GateStep {
  GatedCell cell;
  bool backward;
  Sum<S>* carry; // [rows, N rounded up to whole vectors]
  int64_t carry_stride;
  S* saved; // [rows, saved_of(cell) N]; written in a forward step unless it is nullptr, otherwise
            // read
  int64_t saved_stride;
  const Sum<S>* bias; // [N rounded up to whole vectors], read in a forward step of a GRU: b_hn
};

// A matrix product together with everything that is done to its result while it is in cache:
//
//   result = act(a w + sums_before + addend + addend2)
//
// for `rows` rows and the columns [col_begin, col_end) of N. Each matrix is a pointer to its first
// row and a stride in elements from row to row. The result is written to each of `operand`, `sums`
// and `out` that is not nullptr.
template <class S, class O = S> struct FusedProduct {
  int64_t rows, K, N;
  int64_t col_begin, col_end; // multiples of the panel width; col_end may also be N
  const O* a; // [rows, K]. If K is odd and O is bfloat16, element K is multiplied by 0, so it must
              // be finite
  int64_t a_stride;
  const S* w; // [K, N], packed by VectorKernels::pack unless it is given to `unpacked_product`
  Activation act;
  const LeakStep<S>* leak; // nullptr, or what is done in place of `act`; `sums` is not written then
  const GateStep<S>* gates;   // nullptr, or what is done in place of `act` and `leak`
  const Sum<S>* sums_before;  // [rows, N], or nullptr
  int64_t sums_before_stride; // 0 adds one row, such as a bias, to all rows
  const S* addend;            // [rows, N], or nullptr
  int64_t addend_stride;
  const S* addend2; // [rows, N], or nullptr
  int64_t addend2_stride;
  const S* h; // [rows, N]: the outputs of the forward pass, which kTanhGrad and kReluGrad read
  int64_t h_stride;
  O* operand; // [rows, N rounded up to whole vectors]: the left factor of the next product
  int64_t operand_stride;
  Sum<S>* sums; // [rows, N rounded up to whole vectors]
  int64_t sums_stride;
  S* out; // [rows, N]
  int64_t out_stride;
  bool far; // w and sums are not in the nearer caches and must be fetched ahead of their use
};

// The most rows that OuterProducts adds up at a time. With more rows, its two factors would not fit
// into the cache together.
constexpr int64_t kOuterRows = 256;

// A sum of outer products, which gives the gradient of a weight matrix:
//
//   out[m, n] (+)= sum over k of p[k, m] q[k, n],   k < K <= kOuterRows, m < M, n < N
template <class S, class O = S> struct OuterProducts {
  int64_t K, M, N;
  const O* p; // [K, M]
  int64_t p_stride;
  const O* q;  // [K, N], packed by VectorKernels::pack_rows
  Sum<S>* out; // [M, N], contiguous
  bool add;    // true: the sum is added to `out`; false: it replaces `out`
};

// The vector code for one element type and one instruction set.
template <class S, class O = S> struct VectorKernels {
  int vector; // elements of Sum<S> in a vector
  int panel;  // columns of a packed panel

  // Pack the right factor [K, N] of a FusedProduct. Its element (k, n) is w[n * K + k] if
  // `transpose`, otherwise w[k * N + n]. Only the panels that hold columns [col_begin, col_end) are
  // packed. The columns after N in the last panel become zeros. `packed` has packed_size(K, N)
  // elements.
  void (*pack)(const S* w, bool transpose, int64_t K, int64_t N, int64_t col_begin, int64_t col_end,
               S* packed);
  // Pack the right factor [K, N] of OuterProducts from pointers to its K rows. nullptr stands for a
  // row of zeros.
  void (*pack_rows)(const S* const* rows, int64_t K, int64_t N, O* packed);
  // Convert a row of n elements to a left factor, with zeros up to a whole vector.
  void (*widen)(const S* row, int64_t n, O* operand);
  // Round a row of n sums to elements.
  void (*narrow)(const Sum<S>* row, int64_t n, S* out);
  // Replace a row of n elements by exp(row - max) and write its maximum and the sum of the
  // exponentials to `max` and `sum`. If the maximum is minus infinity, 0 is subtracted instead. If
  // the row contains a NaN or plus infinity, the sum is NaN. The row must have memory for whole
  // vectors; the elements after n become zeros.
  void (*exponentials)(Sum<S>* row, int64_t n, Sum<S>* max, Sum<S>* sum);
  void (*fused_product)(const FusedProduct<S, O>&);
  // Compute a FusedProduct whose right factor is not packed: its element (k, n) is w[n * K + k]. In
  // a forward step of gated units, gate g of unit n has the elements w[(g * N + n) * K + k]. W is
  // read once for every row. nullptr where products of pairs make packing as fast for a single row.
  void (*unpacked_product)(const FusedProduct<S, O>&);
  void (*outer_products)(const OuterProducts<S, O>&);
  // Dropout of the elements [begin, end), where `begin` is a multiple of the vector. An element
  // becomes 0 if its random number is less than `dropped`, otherwise it is multiplied by `scale`.
  void (*dropout)(const S* x, int64_t begin, int64_t end, uint64_t seed, uint32_t dropped,
                  Sum<S> scale, S* out);
  // Add the numbers [begin, end) of a row of `normal` in api/leaky.h, multiplied by `scale`, to the
  // same elements of `sums`.
  void (*add_normal)(uint64_t seed, int64_t row, int64_t begin, int64_t end, int64_t N,
                     const Sum<S>* scale, Sum<S>* sums);

  int64_t packed_size(int64_t K, int64_t N) const {
    return (K + 1) / 2 * 2 * ((N + panel - 1) / panel * panel);
  }
  // The rows of a packed right factor. Products of pairs need an even number.
  static int64_t packed_depth(int64_t K) {
    return std::is_same<O, bfloat16>::value ? (K + 1) / 2 * 2 : K;
  }
};

// The vector code of one instruction set for all element types.
struct KernelSet {
  VectorKernels<float> f32;
  VectorKernels<double> f64;
  VectorKernels<bfloat16, float> bf16;
  VectorKernels<float16, float> f16;
  // Update the vectors [2, D + 1] of the word and the context of one entry; see api/glove.h.
  float (*glove_update)(float* word, float* context, int64_t D, float log_x, float weight,
                        float lr);
  ReservoirKernels<float> reservoir_f32;
  ReservoirKernels<double> reservoir_f64;
};

struct Isa {
  const char* name;
  bool (*available)(); // whether this CPU and operating system can run it
  const KernelSet* kernels;
  const VectorKernels<bfloat16>* bf16_pairs; // nullptr if the CPU does not multiply pairs
  bool (*enable)() = nullptr; // must succeed before the first use; nullptr: nothing is needed
};

// One per file isa_*.cpp.
extern const Isa kGeneric;
#if defined(__x86_64__)
extern const Isa kAvx2, kAvx512OnAvx2, kAvx512, kAvx512Bf16;
#if defined(__linux__) && (defined(__clang__) || __GNUC__ >= 11)
#define RNNFAST_AMX
extern const Isa kAmx, kAmxEmulated;
#endif
extern const KernelSet kAvx512Kernels; // used by every instruction set that extends AVX-512
#elif defined(__aarch64__)
extern const Isa kNeon;
#endif

// Return the instruction sets that this CPU and operating system can run. The last one is the
// fastest that has been tried, and the default.
std::vector<const Isa*> available_isas();
// Return the instruction set in use: the one that set_isa has chosen, otherwise the one that the
// environment variable RNNFAST_ISA names, otherwise the default.
const Isa& current_isa();
// Choose an instruction set by name; an empty name returns to the default. Throws
// std::invalid_argument for a name that is not available.
void set_isa(const std::string& name);

// Return the vector code of the instruction set in use for one element type.
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
