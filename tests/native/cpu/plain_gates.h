// Gated units in plain loops of double, and the test data for them; see test_gated.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <initializer_list>
#include <map>
#include <string>
#include <vector>

#include "api/gated.h"
#include "support.h"

// What a case has. The gradients are those that the backward pass writes, except kDy, kDhN and
// kDcN, which it reads. kReverse is for a single direction.
enum Option {
  kReverse,
  kResets,
  kTokens,
  kH0,
  kC0,
  kBIh,
  kBHh,
  kDy,
  kDhN,
  kDcN,
  kDx,
  kDwIh,
  kDwHh,
  kDb,
  kDbHh,
  kDh0,
  kDc0
};

struct GatedCase {
  int64_t T, B, I, H, layers, directions;
  GatedCell cell;
  Layout layout;
  unsigned options; // bit n: the option n

  bool has(Option option) const { return (options >> option & 1) != 0; }
  bool is_lstm() const { return cell == GatedCell::kLstm; }
  bool has_tokens(int64_t layer) const { return layer == 0 && I > 0 && has(kTokens); }
  bool is_reverse(int64_t direction) const {
    return direction == 1 || (directions == 1 && has(kReverse));
  }
  int64_t outputs() const { return gates_of(cell) * H; } // the rows of the weights
  int64_t inputs(int64_t layer) const { return layer == 0 ? I : directions * H; }

  std::string name() const {
    char text[200];
    std::snprintf(text, sizeof text,
                  "%s T=%d B=%d I=%d H=%d layers=%d directions=%d layout=%d options=%x",
                  is_lstm() ? "lstm" : "gru", int(T), int(B), int(I), int(H), int(layers),
                  int(directions), int(layout), options);
    return text;
  }
};

// The inputs of one direction of one layer. What is not given is empty.
template <class T> struct Direction {
  std::vector<T> w_ih, w_hh, b_ih, b_hh, h0, c0, dh_n, dc_n;
};
using Numbers = std::vector<double>;
// Outputs and gradients by name. Those of sequences have only the rows that exist, step by step.
template <class T> using Tensors = std::map<std::string, std::vector<T>>;

template <class T> struct GatedInputs {
  std::vector<int64_t> batch_sizes;
  Rows x_rows, y_rows, token_rows;
  std::vector<T> x, dy, table[2]; // a table for each direction of the lowest layer
  std::vector<int64_t> tokens;
  std::vector<char> resets; // in the rows of the tokens
  std::vector<Direction<T>> stack;

  explicit GatedInputs(const GatedCase& c, Random random = {})
      : batch_sizes(batch_sizes_of(c.layout, c.T, c.B)),
        x_rows(rows_of(c.layout, batch_sizes, c.I)),
        y_rows(rows_of(c.layout, batch_sizes, c.directions * c.H)),
        token_rows(rows_of(c.layout, batch_sizes, 1)), x(random.array<T>(x_rows.size)),
        dy(random.array<T>(y_rows.size)), tokens(token_rows.size), resets(token_rows.size) {
    for (char& reset : resets) {
      reset = c.has(kResets) && random() < -0.4;
    }
    for (size_t i = 0; c.has_tokens(0) && i < x_rows.begins.size(); ++i) {
      if (x_rows.begins[i] >= 0) { // the input is given both as tokens and as unit vectors
        const int64_t token = int64_t((random() + 1) / 2 * double(c.I));
        tokens[token_rows.begins[i]] = token;
        std::fill_n(x.begin() + x_rows.begins[i], c.I, T{});
        x[x_rows.begins[i] + token] = from<T>(1);
      }
    }
    for (int64_t n = 0; n < c.layers * c.directions; ++n) {
      const int64_t I = c.inputs(n / c.directions), H = c.H, M = c.outputs();
      const auto array = [&](int64_t size, bool given, double scale = 1) {
        return random.array<T>(given ? size : 0, scale);
      };
      stack.push_back({array(M * I, true, 1 / std::sqrt(double(I) + 1)),
                       array(M * H, true, 1 / std::sqrt(double(H))), array(M, c.has(kBIh)),
                       array(M, c.has(kBHh)), array(c.B * H, c.has(kH0)),
                       array(c.B * H, c.has(kC0) && c.is_lstm()), array(c.B * H, c.has(kDhN)),
                       array(c.B * H, c.has(kDcN) && c.is_lstm())});
      for (int64_t k = 0; n < c.directions && k < I; ++k) {
        for (int64_t m = 0; m < M; ++m) {
          table[n].push_back(stack[n].w_ih[m * I + k]);
        }
      }
    }
  }
};

template <class T> Numbers numbers(const std::vector<T>& v) {
  Numbers result;
  for (const T& x : v) {
    result.push_back(value(x));
  }
  return result;
}

// Return the rows of `v` that exist.
template <class T> Numbers numbers(const std::vector<T>& v, const Rows& rows) {
  Numbers result;
  for (int64_t begin : rows.begins) {
    for (int64_t i = 0; begin >= 0 && i < rows.width; ++i) {
      result.push_back(value(v[begin + i]));
    }
  }
  return result;
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
// Return an element of a tensor, or 0 if the tensor is not given.
inline double at(const Numbers& v, int64_t i) { return v.empty() ? 0 : v[i]; }

// One direction of one layer in loops. A row is a time step of a sequence. Rows are numbered in the
// order of time.
class PlainGates {
public:
  Numbers h, saved, h_n, c_n;
  Numbers dx, dw_ih, dw_hh, db, db_hh, dh0, dc0;

  // order[b] has the rows of sequence b in the order of computation. `resets` tells of each row
  // whether the state is zero before it.
  PlainGates(const GatedCase& c, const Direction<double>& d,
             const std::vector<std::vector<int64_t>>& order, const std::vector<bool>& resets,
             int64_t I, const Numbers& x)
      : c_(c), d_(d), order_(order), resets_(resets), I_(I), x_(x) {
    const int64_t H = c.H, N = int64_t(resets.size());
    h.resize(N * H), saved.resize(N * saved_of(c.cell) * H);
    h_n = d.h0, h_n.resize(c.B * H), c_n = d.c0, c_n.resize(c.B * H);
    units_.resize(N * H), before_.resize(N * H);
    for (int64_t b = 0; b < c.B; ++b) {
      double *const state = h_n.data() + b * H, *const cell = c_n.data() + b * H;
      for (int64_t n : order[b]) {
        if (resets[n]) {
          std::fill_n(state, H, 0), std::fill_n(cell, H, 0);
        }
        std::copy_n(state, H, before_.data() + n * H);
        for (int64_t j = 0; j < H; ++j) {
          state[j] = h[n * H + j] = step(n, j, cell[j]);
        }
      }
    }
  }

  // Compute the gradients of the inputs from that of h.
  void backward(const Numbers& dy) {
    const int64_t H = c_.H, M = c_.outputs();
    dx.resize(x_.size()), dw_ih.resize(M * I_), dw_hh.resize(M * H), db.resize(M), db_hh.resize(M);
    dh0 = d_.dh_n, dh0.resize(c_.B * H), dc0 = d_.dc_n, dc0.resize(c_.B * H);
    for (int64_t b = 0; b < c_.B; ++b) {
      double *const dh = dh0.data() + b * H, *const dc = dc0.data() + b * H;
      for (auto n = order_[b].rbegin(); n != order_[b].rend(); ++n) {
        Numbers input(M), recurrent(M), through(H);
        for (int64_t j = 0; j < H; ++j) {
          through[j] = step_back(*n, j, dh[j] + at(dy, *n * H + j), dc[j], input, recurrent);
        }
        for (int64_t m = 0; m < M; ++m) {
          db[m] += input[m], db_hh[m] += recurrent[m];
          for (int64_t k = 0; k < I_; ++k) {
            dw_ih[m * I_ + k] += input[m] * x_[*n * I_ + k];
            dx[*n * I_ + k] += input[m] * d_.w_ih[m * I_ + k];
          }
          for (int64_t k = 0; k < H; ++k) {
            dw_hh[m * H + k] += recurrent[m] * before_[*n * H + k];
            through[k] += recurrent[m] * d_.w_hh[m * H + k];
          }
        }
        for (int64_t j = 0; j < H; ++j) {
          dh[j] = resets_[*n] ? 0 : through[j], dc[j] = resets_[*n] ? 0 : dc[j];
        }
      }
    }
  }

private:
  // r, z and n of a GRU, or i, f, g and o of an LSTM. `before` is W_hn h + b_hn or the c before,
  // and y is tanh c.
  struct Unit {
    double gates[4], before, y;
  };

  // Compute h of unit j in row n, and replace the c of an LSTM by the next one.
  double step(int64_t n, int64_t j, double& c) {
    const int64_t H = c_.H;
    double sum[4], from_h[4];
    for (int64_t g = 0; g < gates_of(c_.cell); ++g) {
      const int64_t m = g * H + j;
      from_h[g] = at(d_.b_hh, m);
      for (int64_t k = 0; k < H; ++k) {
        from_h[g] += d_.w_hh[m * H + k] * before_[n * H + k];
      }
      sum[g] = at(d_.b_ih, m) + from_h[g];
      for (int64_t k = 0; k < I_; ++k) {
        sum[g] += d_.w_ih[m * I_ + k] * x_[n * I_ + k];
      }
    }
    const auto save = [&](std::initializer_list<double> values) {
      double* to = saved.data() + n * saved_of(c_.cell) * H + j;
      for (double v : values) {
        *to = v, to += H;
      }
    };
    Unit& unit = units_[n * H + j];
    if (c_.is_lstm()) {
      const double i = sigmoid(sum[0]), f = sigmoid(sum[1]), g = std::tanh(sum[2]),
                   o = sigmoid(sum[3]), next = f * c + i * g, y = std::tanh(next);
      save(
          {y * o * (1 - o), o * (1 - y * y), g * i * (1 - i), c * f * (1 - f), i * (1 - g * g), f});
      unit = {{i, f, g, o}, c, y};
      c = next;
      return o * y;
    }
    const double r = sigmoid(sum[0]), z = sigmoid(sum[1]), before = before_[n * H + j],
                 N = std::tanh(sum[2] + (r - 1) * from_h[2]);
    save({z * (1 - z) * (before - N), (1 - z) * (1 - N * N), r, from_h[2] * r * (1 - r), z});
    unit = {{r, z, N, 0}, from_h[2], 0};
    return (1 - z) * N + z * before;
  }

  // Compute the gradients of the arguments of the gates, as far as they come from the input and
  // from the state, from that of h, and replace the gradient of c by that of the c before. Return
  // the gradient that the h before receives elementwise.
  double step_back(int64_t n, int64_t j, double dh, double& dc, Numbers& input,
                   Numbers& recurrent) const {
    const int64_t H = c_.H;
    const Unit& unit = units_[n * H + j];
    const auto write = [&](std::initializer_list<double> values, Numbers& to) {
      int64_t m = j;
      for (double v : values) {
        to[m] = v, m += H;
      }
    };
    if (c_.is_lstm()) {
      const auto [i, f, g, o] = unit.gates;
      dc += dh * o * (1 - unit.y * unit.y);
      const auto gradients = {dc * g * i * (1 - i), dc * unit.before * f * (1 - f),
                              dc * i * (1 - g * g), dh * unit.y * o * (1 - o)};
      write(gradients, input), write(gradients, recurrent);
      dc *= f;
      return 0;
    }
    const auto [r, z, N, unused] = unit.gates;
    static_cast<void>(unused);
    const double dn = dh * (1 - z) * (1 - N * N), dr = dn * unit.before * r * (1 - r),
                 dz = dh * (before_[n * H + j] - N) * z * (1 - z);
    write({dr, dz, dn}, input), write({dr, dz, dn * r}, recurrent);
    return dh * z;
  }

  const GatedCase& c_;
  const Direction<double>& d_;
  const std::vector<std::vector<int64_t>>& order_;
  const std::vector<bool>& resets_;
  const int64_t I_;
  const Numbers x_;
  Numbers before_; // h before each row
  std::vector<Unit> units_;
};

// Copy the columns [begin, begin + width) of a matrix of `from_width` columns to the columns from
// `to_begin` on of a matrix of `to_width` columns.
inline void copy_columns(const Numbers& from, int64_t from_width, int64_t begin, int64_t width,
                         Numbers& to, int64_t to_width, int64_t to_begin) {
  const int64_t rows = int64_t(from.size()) / from_width;
  to.resize(rows * to_width);
  for (int64_t n = 0; n < rows; ++n) {
    std::copy_n(from.data() + n * from_width + begin, width, to.data() + n * to_width + to_begin);
  }
}

inline std::string place(int64_t layer) { return " of layer " + std::to_string(layer); }
inline std::string place(int64_t layer, int64_t direction) {
  return place(layer) + ", direction " + std::to_string(direction);
}

// Return all outputs and gradients as plain loops compute them.
template <class T> Tensors<double> plain(const GatedCase& c, const GatedInputs<T>& in) {
  const int64_t H = c.H, D = c.directions, S = saved_of(c.cell) * H;
  std::vector<std::vector<int64_t>> order[2];
  std::vector<bool> resets[2];
  for (int64_t d = 0; d < D; ++d) {
    order[d].resize(c.B);
    std::vector<bool> given;
    for (int64_t t = 0; t < c.T; ++t) {
      for (int64_t b = 0; b < in.batch_sizes[t]; ++b) {
        order[d][b].push_back(int64_t(given.size()));
        given.push_back(in.resets[in.token_rows.begins[t * c.B + b]] != 0);
      }
    }
    resets[d] = given;
    for (int64_t b = 0; c.is_reverse(d) && b < c.B; ++b) { // the reset of the step after separates
      for (size_t i = 0; i < order[d][b].size(); ++i) {
        resets[d][order[d][b][i]] = i + 1 < order[d][b].size() && given[order[d][b][i + 1]];
      }
      std::reverse(order[d][b].begin(), order[d][b].end());
    }
  }
  std::vector<Direction<double>> stack;
  for (const Direction<T>& d : in.stack) {
    stack.push_back({numbers(d.w_ih), numbers(d.w_hh), numbers(d.b_ih), numbers(d.b_hh),
                     numbers(d.h0), numbers(d.c0), numbers(d.dh_n), numbers(d.dc_n)});
  }
  std::vector<PlainGates> units;
  Numbers x = numbers(in.x, in.x_rows), dy;
  Tensors<double> all;
  for (int64_t l = 0; l < c.layers; ++l) {
    for (int64_t d = 0; d < D; ++d) {
      units.emplace_back(c, stack[l * D + d], order[d], resets[d], c.inputs(l), x);
      const PlainGates& unit = units.back();
      copy_columns(unit.h, H, 0, H, all["h" + place(l)], D * H, d * H);
      copy_columns(unit.saved, S, 0, S, all["saved" + place(l)], D * S, d * S);
      all["h_n" + place(l, d)] = unit.h_n, all["c_n" + place(l, d)] = unit.c_n;
    }
    x = all["h" + place(l)];
  }
  if (c.has(kDy)) {
    dy = numbers(in.dy, in.y_rows);
  }
  for (int64_t l = c.layers - 1; l >= 0; --l) {
    Numbers dx;
    for (int64_t d = 0; d < D; ++d) {
      PlainGates& unit = units[l * D + d];
      Numbers part;
      copy_columns(dy, D * H, d * H, H, part, H, 0);
      unit.backward(part);
      dx.resize(unit.dx.size());
      std::transform(dx.begin(), dx.end(), unit.dx.begin(), dx.begin(), std::plus<double>());
      const std::string where = place(l, d);
      all["dw_ih" + where] = unit.dw_ih, all["dw_hh" + where] = unit.dw_hh;
      all["db" + where] = unit.db, all["db_hh" + where] = unit.db_hh;
      all["dh0" + where] = unit.dh0, all["dc0" + where] = unit.dc0;
      for (int64_t k = 0; k < c.inputs(l); ++k) { // dtable is the transposed dw_ih
        copy_columns(unit.dw_ih, c.inputs(l), k, 1, all["column"], 1, 0);
        Numbers& dtable = all["dtable" + where];
        dtable.insert(dtable.end(), all["column"].begin(), all["column"].end());
      }
    }
    all["dx" + place(l)] = dy = dx;
  }
  return all;
}
