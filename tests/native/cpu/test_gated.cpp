// Compares gated units with plain loops, forward and backward, in stacks of layers and directions:
// every instruction set of this CPU, every element type, every layout that the contract allows, and
// 1, 3 and 4 threads.
#include "api/gated.h"

#include <cstring>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "api/rnn.h"
#include "plain_gates.h"
#include "support.h"

namespace {

// What a call of the kernels writes.
template <class T> class Outputs {
public:
  // Return the output of this name. The first use gives it memory.
  Output<T>& operator()(const std::string& name, const Rows& rows) {
    return all_.try_emplace(name, rows).first->second;
  }
  // Return memory for a contiguous matrix, or nullptr if it is not wanted.
  T* operator()(bool wanted, const std::string& name, int64_t rows, int64_t columns) {
    return wanted ? (*this)(name, Rows(rows, columns)).memory.data() : nullptr;
  }
  // Return the elements of an output of this name in a block of exactly their size.
  std::vector<T> copy(const std::string& name) {
    Output<T>& output = all_.at(name);
    return std::vector<T>(output.memory.data(), output.memory.data() + output.rows.size);
  }
  Tensors<T> take(const std::string& name) {
    Tensors<T> values;
    for (auto& [what, output] : all_) {
      values[what] = output.take(name + " " + what);
    }
    return values;
  }

private:
  std::map<std::string, Output<T>> all_;
};

template <class T> const T* given(const std::vector<T>& v) {
  return v.empty() ? nullptr : v.data();
}

// Call the kernels, forward and backward if `training`, otherwise forward only.
template <class T>
Tensors<T> run(const GatedCase& c, const GatedInputs<T>& in, int threads, bool training,
               const std::string& name) {
  const int64_t H = c.H, B = c.B, D = c.directions, M = c.outputs(), S = saved_of(c.cell) * H;
  const Rows saved_rows = rows_of(c.layout, in.batch_sizes, D * S);
  Shape shape{c.T, B, H, is_packed(c.layout) ? in.batch_sizes.data() : nullptr, false, threads};
  if (c.has(kResets)) {
    shape.reset = {reinterpret_cast<const bool*>(in.resets.data()), in.token_rows.step,
                   in.token_rows.row};
  }
  // The columns of a tensor that belong to a direction.
  const auto columns = [](auto* data, const Rows& rows, int64_t begin) {
    return Sequence<std::remove_pointer_t<decltype(data)>>{data + begin, rows.step, rows.row};
  };
  Outputs<T> out;
  const int64_t count = c.layers * D;
  std::vector<Gates<T>> gates(count);
  std::vector<Forward<T>> up(count);
  for (int64_t n = 0; n < count; ++n) {
    const int64_t l = n / D, d = n % D;
    const Direction<T>& from = in.stack[n];
    const bool is_cell = training && c.is_lstm();
    gates[n] = {c.cell, given(from.c0), out(is_cell, "c_n" + place(l, d), B, H), {}};
    if (training) {
      T* const saved = out("saved" + place(l), saved_rows).memory.data();
      gates[n].saved = columns(saved, saved_rows, d * S);
    }
    Forward<T>& f = up[n];
    f.reverse = c.is_reverse(d), f.I = c.inputs(l);
    if (c.has_tokens(l)) {
      f.tokens = columns(in.tokens.data(), in.token_rows, 0), f.table = in.table[d].data();
    } else {
      const T* const below =
          l == 0 ? in.x.data() : out("h" + place(l - 1), in.y_rows).memory.data();
      f.x = columns(below, l == 0 ? in.x_rows : in.y_rows, 0), f.w_ih = given(from.w_ih);
    }
    f.w_hh = from.w_hh.data(), f.b_ih = given(from.b_ih), f.b_hh = given(from.b_hh);
    f.h0 = given(from.h0), f.h_n = out(training, "h_n" + place(l, d), B, H);
    f.h = columns(out("h" + place(l), in.y_rows).memory.data(), in.y_rows, d * H);
    f.gates = &gates[n];
  }
  forward(shape, c.layers, D, up.data());
  if (!training) {
    return out.take(name);
  }

  Tensors<T> read;
  for (int64_t l = 0; l < c.layers; ++l) {
    read["h" + place(l)] = out.copy("h" + place(l));
    read["saved" + place(l)] = out.copy("saved" + place(l));
  }
  std::vector<GatesBackward<T>> gate_gradients(count);
  std::vector<Backward<T>> down(count);
  for (int64_t n = count - 1; n >= 0; --n) {
    const int64_t l = n / D, d = n % D, I = c.inputs(l);
    const std::string where = place(l, d);
    const Direction<T>& from = in.stack[n];
    const bool has_tokens = c.has_tokens(l);
    gate_gradients[n] = {c.cell, columns(given(read["saved" + place(l)]), saved_rows, d * S),
                         given(from.dc_n), out(c.has(kDc0) && c.is_lstm(), "dc0" + where, B, H),
                         out(c.has(kDbHh) && !c.is_lstm(), "db_hh" + where, 1, M)};
    Backward<T>& g = down[n];
    g.reverse = up[n].reverse, g.I = I, g.w_hh = up[n].w_hh, g.tokens = up[n].tokens;
    g.h = columns(given(read["h" + place(l)]), in.y_rows, d * H);
    if (l == c.layers - 1) {
      g.dy = columns(c.has(kDy) ? in.dy.data() : nullptr, in.y_rows, c.has(kDy) ? d * H : 0);
    } else if (D == 2) {
      g.dy = columns(static_cast<const T*>(down[n + D].dx.data), in.y_rows, d * H);
    }
    g.dh_n = given(from.dh_n);
    if (l == 0 ? c.has(kDx) && !has_tokens : D == 2) {
      g.dx = out("dx" + place(l), l == 0 ? in.x_rows : in.y_rows).sequence();
    }
    if (g.dx.data != nullptr || l > 0) {
      g.w_ih = up[n].w_ih;
    }
    g.dw_ih = out(c.has(kDwIh) && !has_tokens, "dw_ih" + where, M, I);
    g.dtable = out(c.has(kDwIh) && has_tokens, "dtable" + where, I, M);
    if (g.dw_ih != nullptr) {
      g.x = l == 0 ? up[n].x : columns(given(read["h" + place(l - 1)]), in.y_rows, 0);
    }
    g.dw_hh = out(c.has(kDwHh), "dw_hh" + where, M, H);
    g.h0 = g.dw_hh != nullptr ? up[n].h0 : nullptr;
    g.db = out(c.has(kDb), "db" + where, 1, M);
    g.dh0 = out(c.has(kDh0), "dh0" + where, B, H);
    g.gates = &gate_gradients[n];
  }
  backward(shape, c.layers, D, down.data());
  return out.take(name);
}

// Fail unless all tensors in `found` have the same bits in `expected`.
template <class T>
void expect_same(const Tensors<T>& found, const Tensors<T>& expected, const std::string& name) {
  for (const auto& [what, values] : found) {
    const std::vector<T>& others = expected.at(what);
    if (!values.empty() &&
        std::memcmp(values.data(), others.data(), values.size() * sizeof(T)) != 0) {
      fail(name + ": " + what + " has different bits");
    }
  }
}

// If `together`, the calls are also run by several threads.
template <class T> void check(const GatedCase& c, const char* type, bool together) {
  const GatedInputs<T> in(c);
  const Tensors<double> expected = plain(c, in);
  for (const Isa* isa : isas_to_test()) {
    if (isa->bf16_pairs != nullptr && !std::is_same_v<T, bfloat16>) {
      continue; // It runs the code of AVX-512.
    }
    set_isa(isa->name);
    const std::string name = std::string(isa->name) + " " + type + " " + c.name();
    const Tensors<T> one = run(c, in, 1, true, name);
    for (const auto& [what, values] : one) {
      compare(values, expected.at(what), name + " " + what);
    }
    expect_same(run(c, in, 1, false, name), one, name + " without gradients");
    for (int threads : together ? thread_counts({3, 4}) : std::vector<int>()) {
      for (int64_t questions : kHandOvers) {
        hand_over_after(questions);
        const std::string how = name + ", " + std::to_string(threads) + " threads, " +
                                std::to_string(questions) + " questions";
        expect_same(run(c, in, threads, true, how), one, how);
      }
      hand_over_after(INT64_MAX);
    }
  }
  set_isa("");
}

// Check a case with random options, in float and a random other type.
void check_case(Random& random, GatedCase c, bool together) {
  const auto draw = [&](unsigned count) { return unsigned((random() + 1) / 2 * count); };
  const unsigned calls = (1u << kH0) - 1, some = draw(1u << (kDc0 + 1));
  c.options = some | (draw(1u << (kDc0 + 1)) & ~calls); // three of four tensors are given or wanted
  check<float>(c, "float", together);
  switch (draw(3)) {
  case 0:
    check<double>(c, "double", together);
    break;
  case 1:
    check<bfloat16>(c, "bfloat16", together);
    break;
  default:
    check<float16>(c, "float16", together);
  }
}

} // namespace

void test_gated() {
  // clang-format off
  const int64_t small[][6] = {
      // T, B, I, H, layers, directions
      {1, 1, 1, 1, 1, 1},
      {1, 3, 21, 37, 1, 2},
      {3, 2, 5, 7, 2, 1},
      {2, 3, 0, 3, 1, 1},
      {3, 13, 4, 33, 2, 2},
  };
  const int64_t large[][6] = {
      {2, 150, 3, 33, 1, 1}, // a thread has more rows than a block of input projections
      {40, 1, 3, 97, 2, 1}, // one row, whose units the threads divide, and layers at the same time
      {33, 9, 3, 67, 1, 1},  // groups of several threads, over more than one block of steps
      {140, 2, 3, 33, 2, 2}, // directions at the same time, over more than one block of steps
  };
  // clang-format on
  Random random;
  for (GatedCell cell : {GatedCell::kGru, GatedCell::kLstm}) {
    for (const auto& [T, B, I, H, layers, directions] : small) {
      for (Layout layout : kLayouts) {
        check_case(random, {T, B, I, H, layers, directions, cell, layout, 0}, false);
      }
    }
    for (const auto& [T, B, I, H, layers, directions] : large) {
      for (Layout layout : {Layout::kBatchFirst, Layout::kPacked}) {
        check_case(random, {T, B, I, H, layers, directions, cell, layout, 0}, true);
      }
    }
  }
}
