// The arguments that every call of the recurrence has, and their checks; see api/rnn.h.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "../api/rnn.h"
#include "bindings.h"

namespace rnnfast {

// The letters are those of api/rnn.h. Each direction of each layer has W_ih, W_hh and `biases` of
// b_ih and b_hh, which have G H rows for G gates. All weights are contiguous. If the input is
// one-hot, the W_ih of layer 0 is given transposed, as a table [I, G H].
class RnnArguments {
public:
  Shape shape;
  int64_t L, D, I, G; // I is the input size of layer 0
  bool one_hot, batch_first;
  Dtype dtype;
  TensorView x, h0;

  RnnArguments(pybind11::handle x_, pybind11::handle h0_, const pybind11::list& weights,
               pybind11::handle batch_sizes_, pybind11::handle reset_, int64_t L_,
               bool batch_first_, bool relu, int64_t biases, int threads, int64_t gates = 1)
      : L(L_), G(gates), batch_first(batch_first_), x("input", x_), h0("hx", h0_) {
    const int64_t per = 2 + biases, count = int64_t(weights.size());
    D = L < 1 ? 0 : count / (L * per);
    if (D < 1 || D > 2 || D * L * per != count) {
      throw std::invalid_argument(
          "weights must have " + std::to_string(per) +
          " tensors for each layer and for each of 1 or 2 directions, got " +
          std::to_string(count) + " tensors for " + std::to_string(L) + " layers");
    }
    require(threads >= 1, "threads must be at least 1", threads);
    one_hot = x.dtype() == Dtype::kInt64;
    const TensorView batch_sizes("batch_sizes", batch_sizes_);
    packed_ = bool(batch_sizes);
    if (x.dim() + one_hot != (packed_ ? 2 : 3)) {
      x.refuse(packed_ ? "(N, I), or int64 (N) for one-hot input"
                       : "(T, B, I), or int64 (T, B) for one-hot input");
    }
    shape.relu = relu, shape.threads = std::min(threads, usable_cpus()),
    shape.batch_sizes = batch_sizes.data<int64_t>();
    if (packed_) {
      check(batch_sizes);
    } else {
      shape.T = x.size(batch_first), shape.B = x.size(!batch_first);
    }
    if (shape.T < 1 || shape.B < 1) {
      x.refuse("of at least one time step and one row");
    }

    const TensorView w_hh("weight_hh", weights[1]);
    if (w_hh.dim() != 2 || w_hh.size(1) < 1) {
      w_hh.refuse("(H, H) with H at least 1");
    }
    shape.H = w_hh.size(1);
    dtype = one_hot ? w_hh.dtype() : x.dtype();
    if (dtype == Dtype::kInt64 || dtype == Dtype::kOther) {
      (one_hot ? w_hh : x).refuse("torch.float32, torch.float64, torch.bfloat16 or torch.float16");
    }
    const TensorView reset("reset", reset_);
    if (reset) {
      check_reset(reset);
      shape.reset = sequence<const bool>(reset);
    }
    const TensorView first("weight_ih", weights[0]);
    I = !one_hot ? x.size(-1) : first.dim() == 2 ? first.size(0) : 0;
    for (int64_t n = 0; n < L * D; ++n) {
      const bool table = one_hot && n < D;
      const int64_t inputs = this->inputs(n);
      const TensorView w_ih("weight_ih", weights[n * per]), w_hh("weight_hh", weights[n * per + 1]);
      const int64_t rows = G * shape.H;
      w_ih_.push_back(
          w_ih.expect_contiguous(dtype, {table ? inputs : rows, table ? rows : inputs}));
      w_hh_.push_back(w_hh.expect_contiguous(dtype, {rows, shape.H}));
      b_ih_.emplace_back(), b_hh_.emplace_back();
      if (biases > 0) {
        b_ih_[n] = TensorView("bias_ih", weights[n * per + 2]).expect_contiguous(dtype, {rows});
      }
      if (biases > 1) {
        b_hh_[n] = TensorView("bias_hh", weights[n * per + 3]).expect_contiguous(dtype, {rows});
      }
    }
    if (h0) {
      h0.expect_contiguous(dtype, {L * D, shape.B, shape.H});
    }
  }

  // The input size of direction n of the stack, counted through all layers.
  int64_t inputs(int64_t n) const { return n < D ? I : D * shape.H; }
  // Whether direction n reads a table.
  bool has_table(int64_t n) const { return one_hot && n < D; }

  // The part of an [L * D, B, H] tensor that belongs to direction n.
  template <class T> T* state(const TensorView& t, int64_t n) const {
    return t.data<T>(n * shape.B * shape.H);
  }
  // The columns of a tensor with `per_unit` numbers for each unit of both directions of a layer,
  // such as its output, that belong to direction n.
  template <class T>
  Sequence<T> direction_columns(const TensorView& t, int64_t n, int64_t per_unit = 1) const {
    return sequence<T>(t, n % D * per_unit * shape.H);
  }
  // A tensor that is laid out as the input is, from the column `offset` on.
  template <class T> Sequence<T> sequence(const TensorView& t, int64_t offset = 0) const {
    return !t ? Sequence<T>{nullptr, 0, 0}
           : packed_
               ? Sequence<T>{t.data<T>(offset), 0, t.stride(0)}
               : Sequence<T>{t.data<T>(offset), t.stride(batch_first), t.stride(!batch_first)};
  }
  // Throw unless `t` has a row of `width` elements for every row of the input.
  const TensorView& expect_rows(const TensorView& t, int64_t width) const {
    return packed_ ? t.expect(dtype, {x.size(0), width})
                   : t.expect(dtype, {x.size(0), x.size(1), width});
  }
  // Return views of a list of one tensor for each layer, with `per_unit` numbers for each unit.
  std::vector<TensorView> of_layers(const char* name, const pybind11::list& list,
                                    int64_t per_unit = 1) const {
    std::vector<TensorView> tensors;
    for (pybind11::handle object : list) {
      tensors.push_back(expect_rows(TensorView(name, object), D * per_unit * shape.H));
    }
    if (int64_t(tensors.size()) != L) {
      throw std::invalid_argument(std::string(name) + " must have one tensor for each of " +
                                  std::to_string(L) + " layers, got " +
                                  std::to_string(tensors.size()) + " tensors");
    }
    return tensors;
  }

  const TensorView& w_ih(int64_t n) const { return w_ih_[n]; }
  const TensorView& w_hh(int64_t n) const { return w_hh_[n]; }
  const TensorView& b_ih(int64_t n) const { return b_ih_[n]; }
  const TensorView& b_hh(int64_t n) const { return b_hh_[n]; }

private:
  void check(const TensorView& batch_sizes) {
    if (batch_sizes.dtype() != Dtype::kInt64 || batch_sizes.dim() != 1 ||
        batch_sizes.size(0) == 0) {
      batch_sizes.refuse("torch.int64 (T) with T at least 1");
    }
    batch_sizes.expect_contiguous(Dtype::kInt64, {batch_sizes.size(0)});
    shape.T = batch_sizes.size(0), shape.B = shape.batch_sizes[0];
    int64_t sum = 0;
    for (int64_t t = 0; t < shape.T; ++t) {
      sum += shape.batch_sizes[t];
      if (shape.batch_sizes[t] < 1 || (t > 0 && shape.batch_sizes[t] > shape.batch_sizes[t - 1])) {
        throw std::runtime_error("batch_sizes must be positive and never increase, got " +
                                 std::to_string(shape.batch_sizes[t]) + " at time step " +
                                 std::to_string(t));
      }
    }
    if (sum != x.size(0)) {
      throw std::runtime_error("batch_sizes must sum to the " + std::to_string(x.size(0)) +
                               " rows of input, got " + std::to_string(sum));
    }
  }

  // The rows of `reset` are those of the input, and a row is a single element.
  void check_reset(const TensorView& reset) const {
    bool fits = reset.type().code == dlpack::kBool && reset.dim() == (packed_ ? 1 : 2);
    for (int64_t i = 0; fits && i < reset.dim(); ++i) {
      fits = reset.size(i) == x.size(i);
    }
    if (!fits) {
      reset.refuse("torch.bool, with one element for each row of input " + name_of(x.shape()));
    }
  }

  bool packed_;
  std::vector<TensorView> w_ih_, w_hh_, b_ih_, b_hh_;
};

} // namespace rnnfast
