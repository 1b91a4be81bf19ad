// Units with several gates: where the parts of their gates lie in the rows of the buffers, and in
// the packed weights. A layer without gates counts as one whose units have a single gate.
#pragma once

#include <algorithm>
#include <vector>

#include "work.h"

namespace rnnfast {

// The number of gates of the units of a layer.
template <class Call> int64_t gates_in(const Call& call) {
  return call.gates != nullptr ? gates_of(call.gates->cell) : 1;
}

// Where the sums of the units of a layer lie in a row. If the units have several gates, each panel
// of units is followed by the same panel of the next gate, so that the step has all gates of a unit
// at hand. These panels are whole, except that the last units take half a panel for each gate if
// that is enough.
struct UnitLayout {
  int64_t H, gates, panel;

  // The first of the last units, which have fewer columns than a panel or as many.
  int64_t tail() const { return (H - 1) / panel * panel; }
  // The columns that a gate takes for the units of the panel that begins with unit c.
  int64_t columns_at(int64_t c) const { return H - c <= panel / 2 ? panel / 2 : panel; }
  // The length of a row.
  int64_t width() const { return gates == 1 ? H : gates * (tail() + columns_at(tail())); }
  // The elements of the columns of all gates for the last units, with K elements in a column.
  int64_t last_size(int64_t K) const { return gates * columns_at(tail()) * K; }
  // The place of gate g of unit c.
  int64_t place(int64_t g, int64_t c) const {
    const int64_t first = c / panel * panel;
    return gates == 1 ? c : first * gates + g * columns_at(first) + c - first;
  }
  // The columns of a row that belong to the units [c0, c1). c0 is a multiple of the panel.
  Columns columns(int64_t c0, int64_t c1) const {
    return {c0 * gates, c1 == H ? width() : c1 * gates};
  }
};

// The gradients of the arguments of the gates of a layer lie one after another in a row, H elements
// each. A run of gradients belongs to the same number of gates in the order of the weights.
struct GateRun {
  int64_t gradient, gate, count;
};
struct GateSlots {
  int64_t gates, gradients;
  // The runs that W_ih and W_hh are multiplied by. Each is a contiguous part of the row.
  std::vector<GateRun> input, recurrent;

  // `cell` is nullptr for units without gates.
  explicit GateSlots(const GatedCell* cell) : gates(1), gradients(1) {
    if (cell == nullptr || *cell == GatedCell::kLstm) {
      gates = gradients = cell == nullptr ? 1 : gates_of(*cell);
      input = recurrent = {{0, 0, gates}};
    } else { // n as far as it comes from the input, r, z, n as far as it comes from the state
      gates = gates_of(*cell), gradients = 4;
      input = {{0, 2, 1}, {1, 0, 2}};
      recurrent = {{1, 0, 3}};
    }
  }
};

// Pack the units of a W_ih or W_hh, [G H, K], that belong to `thread` for a product whose columns
// are laid out by `layout`. `last` has memory for layout.last_size(K) elements.
template <class S, class O>
void pack_gates(const VectorKernels<S, O>& kernels, const S* w, const UnitLayout& layout, int64_t K,
                int thread, int threads, S* last, S* packed) {
  const int64_t H = layout.H, G = layout.gates, panel = layout.panel,
                depth = kernels.packed_depth(K);
  const Columns columns = columns_of(thread, threads, H, panel);
  for (int64_t c = columns.begin; c < columns.end; c += panel) {
    const int64_t count = std::min(panel, H - c), width = layout.columns_at(c);
    S* const to = packed + layout.place(0, c) * depth;
    for (int64_t g = 0; g < G; ++g) {
      const S* const from = w + (g * H + c) * K;
      if (count == panel) {
        kernels.pack(from, true, K, panel, 0, panel, to + g * panel * depth);
      } else { // the columns of all gates are packed as one matrix
        S* const end = std::copy_n(from, count * K, last + g * width * K);
        std::fill_n(end, (width - count) * K, S{});
      }
    }
    if (count < panel) {
      kernels.pack(last, true, K, G * width, 0, G * width, to);
    }
  }
}

// Return what is added to W_ih x of all gates: b_ih + b_hh, but only b_ih for the gate n of a GRU.
// A bias that is nullptr is zero.
template <class S>
Buffer<Sum<S>> gate_biases(const UnitLayout& layout, GatedCell cell, const S* b_ih, const S* b_hh) {
  Buffer<Sum<S>> sum = allocate<Sum<S>>(layout.width());
  std::fill_n(sum.get(), layout.width(), Sum<S>(0));
  for (int64_t g = 0; g < layout.gates; ++g) {
    const bool apart = cell == GatedCell::kGru && g == 2;
    for (int64_t c = 0; c < layout.H; ++c) {
      const int64_t n = g * layout.H + c;
      sum[layout.place(g, c)] = (b_ih != nullptr ? to_sum(b_ih[n]) : Sum<S>(0)) +
                                (b_hh != nullptr && !apart ? to_sum(b_hh[n]) : Sum<S>(0));
    }
  }
  return sum;
}

} // namespace rnnfast
