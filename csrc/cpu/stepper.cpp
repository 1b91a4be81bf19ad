// One time step of all layers. A layer of plain or leaky units multiplies the row [x h], its input
// and its last state, by the packed matrix [W_ih W_hh]. Gated units are in gated_layer.h. The time
// of a small batch is the time in which the weights come out of the cache. So the threads divide
// the columns, as in generate.cpp.
#include "../api/stepper.h"

#include <algorithm>

#include "gated_layer.h"
#include "parallel.h"
#include "work.h"

namespace rnnfast {

template <class T> class Stepper<T>::Impl {
public:
  virtual ~Impl() = default;
  virtual void step(const T* x, int64_t x_row, T* out) = 0;
  virtual void read_state(T* h, T* c) const = 0;
  virtual void write_state(const T* h, const T* c) = 0;
  virtual void reset(int64_t b) = 0;
};

// isa.h explains the types S and O; here T is S.
template <class T> template <class O> class Stepper<T>::ImplFor final : public Impl {
  using C = Sum<T>;

public:
  ImplFor(int64_t B, int64_t I, int64_t H, Cell cell, int threads, const std::vector<Layer>& layers)
      : B_(B), I_(I), H_(H), cell_(cell), kernels_(current_kernels<T, O>()) {
    double work = 0;
    for (const Layer& from : layers) {
      layers_.push_back(pack(from, layers_.empty() ? I : H));
      work += double(B) * gates_of(cell) * double(H) * double(layers_.back().inputs + H);
    }
    threads_ = threads_for(threads, work);
  }

  void step(const T* x, int64_t x_row, T* out) override {
    for (int64_t b = 0; b < B_; ++b) {
      // widen writes whole vectors, and so would overwrite the state behind the input.
      kernels_.widen(x + b * x_row, I_, widened_.get());
      std::copy_n(widened_.get(), I_, layers_[0].rows[now_].get() + b * layers_[0].ld);
    }
    parallel(threads_, [&](int thread, int threads) { run(thread, threads); });
    now_ = 1 - now_;
    std::copy_n(layers_.back().h.get(), B_ * H_, out);
  }

  void read_state(T* h, T* c) const override {
    for (const PackedLayer& layer : layers_) {
      for (int64_t b = 0; b < B_; ++b, h += H_) {
        if (layer.alpha != nullptr) {
          kernels_.narrow(layer.carry.get() + b * layer.carry_ld, H_, h);
        } else {
          std::copy_n(layer.h.get() + b * H_, H_, h);
        }
        if (cell_ == Cell::kLstm) {
          kernels_.narrow(layer.gated->carry(b), H_, c), c += H_;
        }
      }
    }
  }

  void write_state(const T* h, const T* c) override {
    const T* carried = cell_ == Cell::kLstm ? c : h; // of gated units
    for (PackedLayer& layer : layers_) {
      for (int64_t b = 0; b < B_; ++b, h += H_, carried += H_) {
        O* const operand = state(layer, now_, b);
        if (layer.gated != nullptr) {
          std::transform(carried, carried + H_, layer.gated->carry(b),
                         [](T element) { return to_sum(element); });
        }
        if (layer.alpha == nullptr) {
          std::copy_n(h, H_, layer.h.get() + b * H_);
          kernels_.widen(h, H_, operand);
          continue;
        }
        for (int64_t j = 0; j < H_; ++j) {
          const C s = to_sum(h[j]);
          layer.carry[b * layer.carry_ld + j] = s;
          operand[j] = from_sum<O>(layer.current ? apply(layer.f, s) : s);
        }
      }
    }
  }

  void reset(int64_t b) override {
    for (PackedLayer& layer : layers_) {
      begin_row(layer, now_, b);
    }
  }

private:
  struct PackedLayer {
    int64_t inputs;
    int64_t ld, state_at; // elements from row to row of `rows`, and where h begins in a row
    std::unique_ptr<GatedLayer<T, O>> gated; // nullptr: the units are plain or leaky
    Buffer<T> w;                             // [W_ih W_hh], packed
    Buffer<C> bias;                          // b_ih + b_hh
    // The rows [x h]. Two buffers take turns, because a step must not overwrite a state that other
    // threads still read.
    Buffer<O> rows[2];
    Buffer<T> h; // [B, H], the last output
    // For leaky units.
    bool current;
    Nonlinearity f;
    int64_t carry_ld;       // elements from row to row of `carry`
    Buffer<C> alpha, carry; // [H] in whole vectors, and [B, carry_ld]: the state
  };

  O* state(const PackedLayer& layer, int now, int64_t b) const {
    return layer.rows[now].get() + b * layer.ld + layer.state_at;
  }

  // Set the state of row b to zero.
  void begin_row(PackedLayer& layer, int now, int64_t b) const {
    std::fill_n(layer.h.get() + b * H_, H_, T{});
    const bool current = layer.alpha != nullptr && layer.current;
    std::fill_n(state(layer, now, b), H_, from_sum<O>(current ? apply(layer.f, C(0)) : C(0)));
    if (layer.alpha != nullptr) {
      std::fill_n(layer.carry.get() + b * layer.carry_ld, layer.carry_ld, C(0));
    }
    if (layer.gated != nullptr) {
      std::fill_n(layer.gated->carry(b), H_, C(0));
    }
  }

  PackedLayer pack(const Layer& from, int64_t inputs) const {
    const int64_t width = round_up(H_, kernels_.vector);
    PackedLayer layer;
    layer.inputs = layer.state_at = inputs;
    if (is_gated(cell_)) {
      // The input is multiplied alone. Products of pairs read the zero after it.
      layer.state_at = round_up(inputs, kernels_.vector);
      layer.gated = std::make_unique<GatedLayer<T, O>>(kernels_, gated(cell_), B_, inputs, H_,
                                                       from.w_ih, from.w_hh, from.b_ih, from.b_hh);
    } else {
      pack_joined(from, layer);
    }
    layer.ld = row_stride<O>(layer.state_at + width);
    for (Buffer<O>& rows : layer.rows) {
      rows = allocate<O>(B_ * layer.ld);
      std::fill_n(rows.get(), B_ * layer.ld, O{});
    }
    layer.h = allocate<T>(B_ * H_);
    layer.current = from.current, layer.f = from.f;
    if (from.alpha != nullptr) {
      layer.carry_ld = row_stride<C>(H_);
      layer.alpha = widened(from.alpha, H_, width), layer.carry = allocate<C>(B_ * layer.carry_ld);
    }
    for (int64_t b = 0; b < B_; ++b) {
      begin_row(layer, 0, b);
    }
    return layer;
  }

  // Pack [W_ih W_hh] and the biases of plain or leaky units.
  void pack_joined(const Layer& from, PackedLayer& layer) const {
    const int64_t inputs = layer.inputs, K = inputs + H_, width = round_up(H_, kernels_.vector);
    std::vector<T> joined(H_ * K);
    for (int64_t j = 0; j < H_; ++j) {
      std::copy_n(from.w_ih + j * inputs, inputs, joined.data() + j * K);
      std::copy_n(from.w_hh + j * H_, H_, joined.data() + j * K + inputs);
    }
    layer.w = allocate<T>(kernels_.packed_size(K, H_));
    kernels_.pack(joined.data(), true, K, H_, 0, H_, layer.w.get());
    layer.bias = allocate<C>(width);
    sum_biases(from.b_ih, from.b_hh, H_, width, layer.bias.get());
  }

  // This thread's columns of every layer.
  void run(int thread, int threads) {
    const auto [c0, c1] = columns_of(thread, threads, H_, kernels_.panel);
    for (size_t l = 0; l < layers_.size(); ++l) {
      PackedLayer& layer = layers_[l];
      if (c0 < c1) {
        FusedProduct<T, O> product{};
        product.operand = state(layer, 1 - now_, 0), product.operand_stride = layer.ld;
        product.out = layer.h.get(), product.out_stride = H_;
        if (layer.gated != nullptr) {
          product.a = state(layer, now_, 0), product.a_stride = layer.ld;
          layer.gated->step(product, layer.rows[now_].get(), layer.ld, nullptr, thread, threads);
        } else {
          run_joined(layer, product, c0, c1);
        }
        for (int64_t b = 0; l + 1 < layers_.size() && b < B_; ++b) {
          const O* const from = state(layer, 1 - now_, b);
          O* const to = layers_[l + 1].rows[now_].get() + b * layers_[l + 1].ld;
          std::copy(from + c0, from + c1, to + c0);
        }
      }
      if (l + 1 < layers_.size()) {
        barrier_.wait(threads);
      }
    }
  }

  // The columns [c0, c1) of a layer of plain or leaky units.
  void run_joined(const PackedLayer& layer, FusedProduct<T, O>& product, int64_t c0,
                  int64_t c1) const {
    product.rows = B_, product.K = layer.inputs + H_, product.N = H_;
    product.col_begin = c0, product.col_end = c1;
    product.a = layer.rows[now_].get(), product.a_stride = layer.ld;
    product.w = layer.w.get();
    product.act = cell_ == Cell::kRelu ? Activation::kRelu : Activation::kTanh;
    product.sums_before = layer.bias.get(), product.sums_before_stride = 0;
    LeakStep<T> leak{};
    if (layer.alpha != nullptr) {
      leak.current = layer.current, leak.f = layer.f, leak.alpha = layer.alpha.get();
      leak.carry = layer.carry.get(), leak.carry_stride = layer.carry_ld;
      product.leak = &leak;
    }
    kernels_.fused_product(product);
  }

  const int64_t B_, I_, H_;
  const Cell cell_;
  const VectorKernels<T, O>& kernels_;
  Buffer<O> widened_ = allocate<O>(round_up(I_, 64) + 64); // one input row, in whole vectors
  std::vector<PackedLayer> layers_;
  int threads_ = 1;
  int now_ = 0; // the index of the `rows` that the next step reads
  Barrier barrier_;
};

template <class T>
Stepper<T>::Stepper(int64_t B, int64_t I, int64_t H, Cell cell, int threads,
                    const std::vector<Layer>& layers) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (current_isa().bf16_pairs != nullptr) {
      impl_ = std::make_unique<ImplFor<T>>(B, I, H, cell, threads, layers);
      return;
    }
  }
  if constexpr (sizeof(T) == 2) {
    impl_ = std::make_unique<ImplFor<float>>(B, I, H, cell, threads, layers);
  } else {
    impl_ = std::make_unique<ImplFor<T>>(B, I, H, cell, threads, layers);
  }
}
template <class T> Stepper<T>::~Stepper() = default;

template <class T> void Stepper<T>::step(const T* x, int64_t x_row, T* out) {
  impl_->step(x, x_row, out);
}
template <class T> void Stepper<T>::read_state(T* h, T* c) const { impl_->read_state(h, c); }
template <class T> void Stepper<T>::write_state(const T* h, const T* c) {
  impl_->write_state(h, c);
}
template <class T> void Stepper<T>::reset(int64_t b) { impl_->reset(b); }

template class Stepper<float>;
template class Stepper<double>;
template class Stepper<bfloat16>;
template class Stepper<float16>;

} // namespace rnnfast
