// What the vector code offers the time loop, and the choice among its versions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace rnnfast {

enum class Activation { kIdentity, kTanh, kRelu, kTanhGrad, kReluGrad };

// One fused product:  out = act(a w + addend [1] + addend [2])  for `rows` rows and the columns
// [col_begin, col_end) of N. Every row is a pointer plus a stride in elements.
template <class T> struct Step {
  int64_t rows, K, N;
  int64_t col_begin, col_end; // col_begin is a multiple of the panel width; col_end too, or N
  const T* a;                 // [rows, K]
  int64_t a_stride;
  const T* w; // K x N, packed by Kernels::pack
  Activation act;
  const T* addend; // [rows, N] or nullptr; stride 0 repeats one row, as a bias
  int64_t addend_stride;
  const T* addend2; // [rows, N] or nullptr
  int64_t addend2_stride;
  const T* h; // [rows, N] what the forward wrote; read by the two gradients
  int64_t h_stride;
  T* padded; // [rows, N rounded up to the vector] or nullptr: what the next product reads
  int64_t padded_stride;
  T* out; // [rows, N] or nullptr
  int64_t out_stride;
};

// The most rows that Outer sums at a time: those of its factors stay in cache beside one another.
constexpr int64_t kOuterRows = 256;

// A sum of outer products:  out[m, n] (+)= sum over k of p[k, m] q[k, n],  k < K <= kOuterRows,
// m < M, n < N.
template <class T> struct Outer {
  int64_t K, M, N;
  const T* p; // [K, M]
  int64_t p_stride;
  const T* q; // [K, N], packed by Kernels::pack_row
  T* out;     // [M, N], contiguous
  bool add;
};

template <class T> struct Kernels {
  int vector; // elements
  int panel;  // columns of a packed panel
  // Element (k, n) of the packed matrix is w[n * K + k] if `transpose`, else w[k * N + n]. Packs
  // the panels that hold columns [col_begin, col_end); the columns past N in the last one are
  // zeros.
  void (*pack)(const T* w, bool transpose, int64_t K, int64_t N, int64_t col_begin, int64_t col_end,
               T* packed);
  // Row k of the same; nullptr: zeros.
  void (*pack_row)(const T* row, int64_t k, int64_t K, int64_t N, T* packed);
  void (*step)(const Step<T>&);
  void (*outer)(const Outer<T>&);
};

struct Isa {
  const char* name;
  bool (*available)();
  Kernels<float> f32;
  Kernels<double> f64;
};

// One per isa_*.cpp.
extern const Isa kGeneric;
#if defined(__x86_64__)
extern const Isa kAvx2, kAvx512OnAvx2, kAvx512;
#endif

// Slowest first; those this CPU and operating system can run.
std::vector<const Isa*> available_isas();
// The one in use: set_isa, else the environment's RNNFAST_ISA, else the last of available_isas().
const Isa& current_isa();
// Empty: back to the default. Throws std::invalid_argument for a name that is not available.
void set_isa(const std::string& name);

template <class T> const Kernels<T>& kernels();
template <> inline const Kernels<float>& kernels<float>() { return current_isa().f32; }
template <> inline const Kernels<double>& kernels<double>() { return current_isa().f64; }

} // namespace rnnfast
