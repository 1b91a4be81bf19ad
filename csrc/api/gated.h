// What makes the units of a recurrent layer gated. The functions `forward` and `backward` of rnn.h
// run such a layer if Forward::gates or Backward::gates is set. There are two cells. All their
// products with vectors that are not W x or W h are elementwise:
//
//   GRU (Cho et al. 2014, doi:10.3115/v1/D14-1179), in the form of torch.nn.GRU:
//     r   = sigmoid(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)
//     z   = sigmoid(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)
//     n   = tanh(W_in x_t + b_in + r (W_hn h_{t-1} + b_hn))
//     h_t = (1 - z) n + z h_{t-1}
//
//   LSTM (Hochreiter and Schmidhuber 1997; Gers et al. 2000, doi:10.1162/089976600300015015):
//     i, f, o = sigmoid(W_i x_t + b_i + W_h h_{t-1} + b_h), each with weights of its own
//     g       = tanh(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)
//     c_t     = f c_{t-1} + i g
//     h_t     = o tanh(c_t)
//
// The weights of the G gates lie one after another, in the order r, z, n or i, f, g, o. So w_ih is
// [G H, I], w_hh [G H, H], b_ih and b_hh are [G H], and `table` is [I, G H]. Their gradients have
// the same shapes. A reset makes h and c zero. Shape::relu is ignored.
#pragma once

namespace rnnfast {

template <class T> struct Sequence;

enum class GatedCell { kGru, kLstm };

// Every cell except that of leaky units. The first two are the activations of plain units.
enum class Cell { kTanh, kRelu, kGru, kLstm };

constexpr bool is_gated(Cell cell) { return cell == Cell::kGru || cell == Cell::kLstm; }
// Return a cell as a GatedCell. The cell must be gated.
constexpr GatedCell gated(Cell cell) {
  return cell == Cell::kGru ? GatedCell::kGru : GatedCell::kLstm;
}

// The number of gates, G. It is 1 for plain units.
constexpr int gates_of(GatedCell cell) { return cell == GatedCell::kGru ? 3 : 4; }
constexpr int gates_of(Cell cell) { return is_gated(cell) ? gates_of(gated(cell)) : 1; }

// The forward pass saves this number of elements for each unit and time step, so that the backward
// pass needs no elementary function: derivatives of h_t and c_t with respect to the arguments of
// the gates and to the state before. A GRU saves dh/dz, dh/dn, dn/d(W_hn h + b_hn) over dn, which
// is r, dn/dr over dn, and dh/dh_{t-1} through z; here a gate stands for its argument. An LSTM
// saves dh/do, dh/dc, dc/di, dc/df, dc/dg and dc/dc_{t-1}, which is f.
constexpr int saved_of(GatedCell cell) { return cell == GatedCell::kGru ? 5 : 6; }

template <class T> struct Gates {
  GatedCell cell;
  const T* c0;       // [B, H], read, for an LSTM: the initial c; nullptr: zeros
  T* c_n;            // [B, H], written, for an LSTM: the last c of each row; nullptr: not wanted
  Sequence<T> saved; // T x B x saved_of(cell) H, written. data == nullptr: not wanted
};

// The gradients beside those of Backward. One that is nullptr is not computed.
template <class T> struct GatesBackward {
  GatedCell cell;
  Sequence<const T> saved; // T x B x saved_of(cell) H, read: what the forward pass wrote
  const T* dc_n;           // [B, H], read, for an LSTM: the gradient of c_n; nullptr: zeros
  T* dc0;                  // [B, H], written, for an LSTM
  // [G H], written, for a GRU: the gradient of b_hh. Backward::db is then that of b_ih alone. For
  // an LSTM the two are equal.
  T* db_hh;
};

} // namespace rnnfast
