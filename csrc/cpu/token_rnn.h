// The recurrent layers of a language model, one token at a time. The products have a single row, so
// their time is the time in which the weights come out of the cache. The threads divide the
// columns, and the part of each thread stays in the cache of its core. They must meet after every
// layer, which is quick unless one of the threads waits for a core.
#pragma once

#include <algorithm>
#include <vector>

#include "../api/generate.h"
#include "gates.h"
#include "waiting.h"
#include "work.h"

namespace rnnfast {

// A matrix [N, K], packed as the right factor of a product.
struct PackedMatrix {
  int64_t N, K;
  Buffer<float> packed;

  PackedMatrix(const VectorKernels<float>& kernels, const float* w, int64_t N, int64_t K)
      : N(N), K(K), packed(allocate<float>(kernels.packed_size(K, N))) {
    kernels.pack(w, true, K, N, 0, N, packed.get());
  }

  // The matrix [G H, K] of the gates of units, packed in the order of `layout`.
  PackedMatrix(const VectorKernels<float>& kernels, const float* w, const UnitLayout& layout,
               int64_t K)
      : N(layout.width()), K(K), packed(allocate<float>(kernels.packed_size(K, N))) {
    const Buffer<float> last = allocate<float>(layout.panel * K);
    pack_gates(kernels, w, layout, K, 0, 1, last.get(), packed.get());
  }

  // Return the product of row `a` with the columns that belong to a thread.
  FusedProduct<float> product(const VectorKernels<float>& kernels, const float* a, int thread,
                              int threads) const {
    const Columns columns = columns_of(thread, threads, N, kernels.panel);
    FusedProduct<float> product{};
    product.rows = 1, product.K = K, product.N = N;
    product.col_begin = columns.begin, product.col_end = columns.end;
    product.a = a, product.w = packed.get();
    return product;
  }
};

// Plain layers multiply [W_hh W_ih] by the last state of the layer, followed, except in layer 0, by
// the new state of the layer below. Gated layers multiply W_ih and W_hh one after the other,
// because the two parts of a gate of a GRU are not just added.
class TokenRnn {
public:
  TokenRnn(const LanguageModel& model, const VectorKernels<float>& kernels)
      : kernels_(kernels), cell_(model.cell), H_(model.H),
        layout_{model.H, gates_of(model.cell), kernels.panel},
        row_(round_up(layout_.width(), kernels.vector)), table_(zeros(model.V * row_)),
        top_(zeros(round_up(H_, kernels.vector))) {
    for (const LanguageModel::LayerWeights& from : model.layers) {
      layers_.push_back(gated() ? gated_layer(from) : plain_layer(from));
    }
    const int64_t width = layout_.gates * H_;
    for (int64_t token = 0; token < model.V; ++token) {
      for (int64_t g = 0; g < layout_.gates; ++g) {
        for (int64_t c = 0; c < H_; ++c) {
          const int64_t place = layout_.place(g, c);
          table_[token * row_ + place] =
              model.table[token * width + g * H_ + c] + layers_[0].bias[place];
        }
      }
    }
  }

  // The multiply-adds of a token.
  int64_t multiply_adds() const {
    const int64_t layers = static_cast<int64_t>(layers_.size());
    return layout_.gates * H_ * H_ * (2 * layers - 1);
  }

  // The state h of the last layer, [H].
  const float* top() const { return top_.get(); }

  // This thread's part of a time step of every layer. `now` is 0 in the first step, and what the
  // last step returned in the others.
  int read(int64_t token, int now, int thread, int threads, Barrier& barrier) {
    for (size_t l = 0; l < layers_.size(); ++l) {
      Layer& layer = layers_[l];
      float* const below = l + 1 < layers_.size() ? layers_[l + 1].below(now) : top_.get();
      const float* const sums = l == 0 ? table_.get() + token * row_ : layer.bias.get();
      FusedProduct<float> product =
          layer.w.product(kernels_, layer.input[now].get(), thread, threads);
      GateStep<float> step{};
      if (gated()) {
        set_gates(layer, step, product, l == 0 ? nullptr : layer.below(now), sums, thread, threads);
      } else {
        product.act = cell_ == LanguageModel::Cell::kRelu ? Activation::kRelu : Activation::kTanh;
        product.sums_before = sums;
      }
      product.out = layer.input[1 - now].get(), product.operand = below;
      kernels_.fused_product(product);
      barrier.wait(threads);
    }
    return 1 - now;
  }

private:
  struct Layer {
    PackedMatrix w; // plain: [W_hh W_ih]; gated: W_hh
    Buffer<float> bias;
    // The last state of this layer, [H], followed by the new one of the layer below, [H]. Two
    // buffers take turns, because a step must not overwrite a state that other threads still read.
    Buffer<float> input[2];
    int64_t H;
    // For gated layers: W_ih, or nothing in layer 0; its products; b_hn of a GRU; h or c.
    std::vector<PackedMatrix> w_ih{};
    Buffer<float> sums{}, recurrent_bias{}, carry{};

    float* below(int now) const { return input[now].get() + H; }
  };

  bool gated() const {
    return cell_ == LanguageModel::Cell::kGru || cell_ == LanguageModel::Cell::kLstm;
  }
  GatedCell gated_cell() const {
    return cell_ == LanguageModel::Cell::kGru ? GatedCell::kGru : GatedCell::kLstm;
  }

  static Buffer<float> zeros(int64_t n) {
    Buffer<float> buffer = allocate<float>(n);
    std::fill_n(buffer.get(), n, 0.0f);
    return buffer;
  }

  // A state of this layer and one of the layer below, with room for the padding that a product
  // writes.
  Buffer<float> state() const { return zeros(H_ + round_up(H_, kernels_.vector)); }

  Layer plain_layer(const LanguageModel::LayerWeights& from) const {
    const int64_t K = from.w_ih != nullptr ? 2 * H_ : H_;
    const Buffer<float> joined = allocate<float>(H_ * K);
    for (int64_t j = 0; j < H_; ++j) {
      std::copy_n(from.w_hh + j * H_, H_, joined.get() + j * K);
      if (from.w_ih != nullptr) {
        std::copy_n(from.w_ih + j * H_, H_, joined.get() + j * K + H_);
      }
    }
    Layer layer{
        PackedMatrix(kernels_, joined.get(), H_, K), allocate<float>(row_), {state(), state()}, H_};
    sum_biases(from.b_ih, from.b_hh, H_, row_, layer.bias.get());
    return layer;
  }

  Layer gated_layer(const LanguageModel::LayerWeights& from) const {
    const int64_t padded = round_up(H_, kernels_.vector);
    Layer layer{PackedMatrix(kernels_, from.w_hh, layout_, H_),
                gate_biases(layout_, gated_cell(), from.b_ih, from.b_hh),
                {state(), state()},
                H_};
    if (from.w_ih != nullptr) {
      layer.w_ih.emplace_back(kernels_, from.w_ih, layout_, H_);
      layer.sums = allocate<float>(row_);
    }
    if (gated_cell() == GatedCell::kGru) {
      layer.recurrent_bias = widened(from.b_hh + 2 * H_, H_, padded);
    }
    layer.carry = zeros(padded);
    return layer;
  }

  // Let `product` compute the units of a gated layer that belong to this thread. `below` is the new
  // state of the layer below, or nullptr in layer 0.
  void set_gates(const Layer& layer, GateStep<float>& step, FusedProduct<float>& product,
                 const float* below, const float* sums, int thread, int threads) const {
    const Columns units = columns_of(thread, threads, H_, kernels_.panel);
    if (below != nullptr) {
      const Columns columns = layout_.columns(units.begin, units.end);
      FusedProduct<float> input = layer.w_ih[0].product(kernels_, below, thread, threads);
      input.col_begin = columns.begin, input.col_end = columns.end;
      input.sums_before = sums, input.sums = layer.sums.get();
      kernels_.fused_product(input);
      sums = layer.sums.get();
    }
    step.cell = gated_cell(), step.carry = layer.carry.get();
    step.bias = layer.recurrent_bias.get();
    product.gates = &step, product.N = H_, product.sums_before = sums;
    product.col_begin = units.begin, product.col_end = units.end;
  }

  const VectorKernels<float>& kernels_;
  const LanguageModel::Cell cell_;
  const int64_t H_;
  const UnitLayout layout_;
  const int64_t row_;         // elements from row to row of table_
  const Buffer<float> table_; // [V, row_]: W_ih x + b of layer 0
  std::vector<Layer> layers_;
  Buffer<float> top_; // the state h of the last layer
};

} // namespace rnnfast
