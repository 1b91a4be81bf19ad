// The time steps of gated units; see GateStep in isa.h. Each cell has a file of its own.

#include "gru-inl.h"
#include "lstm-inl.h"

// The recurrent sums of each gate for a tile: those of row i begin at at[g] + i * stride[g].
template <class C> struct GateSums {
  const C* at[4];
  int64_t stride[4];
};

// The columns that a gate takes for the panel of units that begins `count` units before N, as
// UnitLayout in gates.h says.
template <class C> constexpr int64_t gate_columns(int64_t count) {
  return count <= kVector<C> ? kVector<C> : kPanel<C>;
}

// Finish the units of a panel, from column `col` on, for the rows [row, row + rows). kWhole means
// that the panel has no columns after N.
template <class S, class O, class Cell, bool kSave, bool kWhole>
static void gated_forward(const FusedProduct<S, O>& product, int64_t row, int64_t rows, int64_t col,
                          const GateSums<Sum<S>>& sums) {
  using C = Sum<S>;
  constexpr int VL = kVector<C>;
  const GateStep<S>& step = *product.gates;
  const int64_t width = kWhole ? kPanel<C> : gate_columns<C>(product.N - col);
  for (int64_t i = 0; i < rows; ++i) {
    const C* const before = product.sums_before + (row + i) * product.sums_before_stride;
    for (int64_t j = 0; j < width && (kWhole || col + j < product.N); j += VL) {
      const int64_t c = col + j, n = product.N - c;
      Vec<C> x[Cell::kGates], h[Cell::kGates], saved[Cell::kSaved];
#pragma GCC unroll 4
      for (int g = 0; g < Cell::kGates; ++g) {
        x[g] = load<C>(before + col * Cell::kGates + g * width + j);
        h[g] = load<C>(sums.at[g] + i * sums.stride[g] + j);
      }
      if constexpr (std::is_same_v<Cell, GruCell>) {
        h[2] += load<C>(step.bias + c);
      }
      C* const carry = step.carry + (row + i) * step.carry_stride + c;
      Vec<C> state = load<C>(carry);
      const Vec<C> out = Cell::template forward<C>(x, h, state, saved);
      store<C>(carry, state);
      store_operand<O>(product.operand + (row + i) * product.operand_stride + c, n, out);
      store_part<kWhole, S>(product.out + (row + i) * product.out_stride + c, n, out);
      if constexpr (kSave) {
        S* const to = step.saved + (row + i) * step.saved_stride + c;
#pragma GCC unroll 6
        for (int s = 0; s < Cell::kSaved; ++s) {
          store_part<kWhole, S>(to + s * product.N, n, saved[s]);
        }
      }
    }
  }
}

// Finish a tile of a backward step as `epilogue` in tile-inl.h does.
template <class S, class O, class Cell, bool kWhole>
static void gated_backward(const FusedProduct<S, O>& product, int64_t row, int64_t rows,
                           int64_t col, int64_t width, const Sum<S>* acc) {
  using C = Sum<S>;
  constexpr int VL = kVector<C>;
  const GateStep<S>& step = *product.gates;
  for (int64_t i = row; i < row + rows; ++i, acc += width) {
    for (int64_t j = 0; j < width && (kWhole || col + j < product.N); j += VL) {
      const int64_t c = col + j, n = product.N - c;
      Vec<C> dh = load<C>(acc + j);
      if (product.addend != nullptr) {
        dh += load_part<kWhole, S>(product.addend + i * product.addend_stride + c, n);
      }
      if (product.addend2 != nullptr) {
        dh += load_part<kWhole, S>(product.addend2 + i * product.addend2_stride + c, n);
      }
      Vec<C> saved[Cell::kSaved], gradients[Cell::kGradients];
#pragma GCC unroll 6
      for (int s = 0; s < Cell::kSaved; ++s) {
        saved[s] = load_part<kWhole, S>(step.saved + i * step.saved_stride + s * product.N + c, n);
      }
      C* const carry = step.carry + i * step.carry_stride + c;
      Vec<C> next = load<C>(carry);
      Cell::template backward<C>(dh, saved, next, gradients);
      store<C>(carry, next);
      O* const operand = product.operand + i * product.operand_stride + c;
#pragma GCC unroll 4
      for (int g = 0; g < Cell::kGradients; ++g) {
        store_part<kWhole, O>(operand + g * product.N, n, gradients[g]);
      }
    }
  }
}

// Fetch the columns [col, col + width) of sums_before while the product is computed.
template <class S, class O>
RNNFAST_INLINE void fetch_sums(const FusedProduct<S, O>& product, int64_t row, int64_t rows,
                               int64_t col, int64_t width) {
  for (int64_t i = row; i < row + rows; ++i) {
    for (int64_t j = col; j < col + width; j += 64 / sizeof(Sum<S>)) {
      __builtin_prefetch(product.sums_before + i * product.sums_before_stride + j);
    }
  }
}

template <class S, class O, class Cell>
constexpr Epilogue<S, O> kGatedBackward = {gated_backward<S, O, Cell, true>,
                                           gated_backward<S, O, Cell, false>};
template <class S, class O>
static const Epilogue<S, O>& choose_gated_backward(const GateStep<S>& step) {
  return step.cell == GatedCell::kGru ? kGatedBackward<S, O, GruCell>
                                      : kGatedBackward<S, O, LstmCell>;
}

// Compute the columns of all gates for the units of one panel, whose packed weights begin at `w`,
// for the rows [row, row + rows). Gates that take half a panel share panels in pairs. With few rows
// a tile takes several panels, as in `fused_product`.
template <class S, class O, class Cell>
static void gate_sums(const FusedProduct<S, O>& product, int64_t row, int64_t rows, int64_t width,
                      const S* w, Sum<S>* acc, GateSums<Sum<S>>& sums) {
  using C = Sum<S>;
  constexpr int G = Cell::kGates;
  const O* const a = product.a + row * product.a_stride;
  const int64_t panel_size = padded_depth<O>(product.K) * kPanel<C>;
  const int most = panels_at_once(rows);
  const int in_panel = width == kPanel<C> ? 1 : 2; // the gates
  for (int g = 0, panels = 1; g < G; g += panels * in_panel) {
    const auto compute = [&](auto P, auto NV) {
      accumulate_parts<S, O, P.value, NV.value>(rows, a, product.a_stride, w, panel_size, product.K,
                                                acc);
      panels = P.value;
      for (int n = 0; n < panels * in_panel && g + n < G; ++n) {
        sums.at[g + n] = acc + n * width, sums.stride[g + n] = P.value * NV.value * kVector<C>;
      }
    };
    constexpr std::integral_constant<int, 1> one{};
    constexpr std::integral_constant<int, 2> two{};
    // `pack` makes a narrow panel for a single gate that is left, unless it needs wide ones.
    const int left = (G - g + (kWidened<S, O> ? in_panel - 1 : 0)) / in_panel;
    switch (most < left ? most : left) {
    case 4:
      compute(std::integral_constant<int, 4>(), two);
      break;
    case 3:
      compute(std::integral_constant<int, 3>(), two);
      break;
    case 2:
      compute(two, two);
      break;
    case 1:
      compute(one, two);
      break;
    default:
      if constexpr (!kWidened<S, O>) {
        compute(one, one);
      }
    }
    acc += rows * panels * kPanel<C>, w += panels * panel_size;
  }
}

// Compute a forward step. The panels of the gates of the same units lie side by side.
template <class S, class O, class Cell, bool kSave>
static void gated_step(const FusedProduct<S, O>& product) {
  using C = Sum<S>;
  constexpr int64_t kWide = kPanel<C>;
  constexpr int G = Cell::kGates;
  alignas(64) C acc[RNNFAST_MAX_ROWS * kWide * G];
  const int64_t blocks = (product.rows + RNNFAST_MAX_ROWS - 1) / RNNFAST_MAX_ROWS;
  fetch_left_factor(product, product.col_end - product.col_begin < product.N);
  for (int64_t c = product.col_begin; c < product.col_end; c += kWide) {
    const int64_t width = gate_columns<C>(product.N - c);
    const S* const w = product.w + c * G * padded_depth<O>(product.K);
    for (int64_t block = 0, row = 0; block < blocks; ++block) {
      const int64_t rows = (product.rows - row) / (blocks - block);
      fetch_sums(product, row, rows, c * G, G * width);
      GateSums<C> sums;
      gate_sums<S, O, Cell>(product, row, rows, width, w, acc, sums);
      if (c + kWide <= product.N) {
        gated_forward<S, O, Cell, kSave, true>(product, row, rows, c, sums);
      } else {
        gated_forward<S, O, Cell, kSave, false>(product, row, rows, c, sums);
      }
      row += rows;
    }
  }
}

// Compute a forward step with weights that are not packed.
template <class S, class O, class Cell, bool kSave>
static void unpacked_gated_step(const FusedProduct<S, O>& product) {
  using C = Sum<S>;
  constexpr int64_t kWide = kPanel<C>;
  constexpr int VL = kVector<C>;
  alignas(64) C acc[Cell::kGates * kWide];
  for (int64_t c = product.col_begin; c < product.col_end; c += kWide) {
    const int64_t width = gate_columns<C>(product.N - c);
    GateSums<C> sums{};
    for (int64_t row = 0; row < product.rows; ++row) {
      for (int g = 0; g < Cell::kGates; ++g) {
        sums.at[g] = acc + g * width;
        for (int64_t j = 0; j < width && c + j < product.N; j += VL) {
          dot_products<S, O>(product.a + row * product.a_stride,
                             product.w + (g * product.N + c + j) * product.K, product.N - c - j,
                             product.K, acc + g * width + j);
        }
      }
      if (c + kWide <= product.N) {
        gated_forward<S, O, Cell, kSave, true>(product, row, 1, c, sums);
      } else {
        gated_forward<S, O, Cell, kSave, false>(product, row, 1, c, sums);
      }
    }
  }
}

template <class S, class O, class Cell, bool kPacked>
static void gated_step_of(const FusedProduct<S, O>& product) {
  const bool save = product.gates->saved != nullptr;
  if constexpr (kPacked) {
    save ? gated_step<S, O, Cell, true>(product) : gated_step<S, O, Cell, false>(product);
  } else {
    save ? unpacked_gated_step<S, O, Cell, true>(product)
         : unpacked_gated_step<S, O, Cell, false>(product);
  }
}
template <class S, class O, bool kPacked>
static void gated_step(const FusedProduct<S, O>& product) {
  product.gates->cell == GatedCell::kGru ? gated_step_of<S, O, GruCell, kPacked>(product)
                                         : gated_step_of<S, O, LstmCell, kPacked>(product);
}
