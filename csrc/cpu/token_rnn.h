// The recurrent layers of a language model, one token at a time. The products have a single row, so
// their time is the time in which the weights come out of the cache. The threads divide the
// columns, and the part of each thread stays in the cache of its core. They must meet after every
// layer, which is quick unless one of the threads waits for a core.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "../api/generate.h"
#include "gated_layer.h"
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
// the new state of the layer below.
class TokenRnn {
public:
  TokenRnn(const LanguageModel& model, const VectorKernels<float>& kernels)
      : kernels_(kernels), cell_(model.cell), H_(model.H),
        layout_{model.H, gates_of(model.cell), kernels.panel},
        row_(round_up(layout_.width(), kernels.vector)), table_(zeros(model.V * row_)),
        top_(zeros(round_up(H_, kernels.vector))) {
    for (const LanguageModel::LayerWeights& from : model.layers) {
      layers_.push_back(is_gated(cell_) ? gated_layer(from) : plain_layer(from));
    }
    const int64_t width = layout_.gates * H_;
    const Layer& first = layers_[0];
    const float* const bias = first.gated != nullptr ? first.gated->bias() : first.bias.get();
    for (int64_t token = 0; token < model.V; ++token) {
      for (int64_t g = 0; g < layout_.gates; ++g) {
        for (int64_t c = 0; c < H_; ++c) {
          const int64_t place = layout_.place(g, c);
          table_[token * row_ + place] = model.table[token * width + g * H_ + c] + bias[place];
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
      const float* const row = l == 0 ? table_.get() + token * row_ : nullptr;
      float* const out = layer.input[1 - now].get();
      if (layer.gated != nullptr) {
        FusedProduct<float> product{};
        product.a = layer.input[now].get(), product.out = out, product.operand = below;
        layer.gated->step(product, layer.below(now), 0, row, thread, threads);
      } else {
        FusedProduct<float> product =
            layer.plain->product(kernels_, layer.input[now].get(), thread, threads);
        product.act = cell_ == Cell::kRelu ? Activation::kRelu : Activation::kTanh;
        product.sums_before = row != nullptr ? row : layer.bias.get();
        product.out = out, product.operand = below;
        kernels_.fused_product(product);
      }
      barrier.wait(threads);
    }
    return 1 - now;
  }

private:
  struct Layer {
    // The last state of this layer, [H], followed by the new one of the layer below, [H]. Two
    // buffers take turns, because a step must not overwrite a state that other threads still read.
    Buffer<float> input[2];
    int64_t H;
    // One of the two is nullptr. Plain units have [W_hh W_ih] and b_ih + b_hh.
    std::unique_ptr<GatedLayer<float, float>> gated{};
    std::unique_ptr<PackedMatrix> plain{};
    Buffer<float> bias{};

    float* below(int now) const { return input[now].get() + H; }
  };

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
    Layer layer{{state(), state()}, H_};
    layer.plain = std::make_unique<PackedMatrix>(kernels_, joined.get(), H_, K);
    layer.bias = allocate<float>(row_);
    sum_biases(from.b_ih, from.b_hh, H_, row_, layer.bias.get());
    return layer;
  }

  Layer gated_layer(const LanguageModel::LayerWeights& from) const {
    Layer layer{{state(), state()}, H_};
    layer.gated = std::make_unique<GatedLayer<float, float>>(
        kernels_, gated(cell_), 1, H_, H_, from.w_ih, from.w_hh, from.b_ih, from.b_hh);
    return layer;
  }

  const VectorKernels<float>& kernels_;
  const Cell cell_;
  const int64_t H_;
  const UnitLayout layout_;
  const int64_t row_;         // elements from row to row of table_
  const Buffer<float> table_; // [V, row_]: W_ih x + b of layer 0
  std::vector<Layer> layers_;
  Buffer<float> top_; // the state h of the last layer
};

} // namespace rnnfast
