// The contract of a recurrent network that gets one time step at a time, for streams whose next
// input is not known yet. It computes what `forward` in rnn.h computes.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "element.h"
#include "gated.h"
#include "leaky.h"

namespace rnnfast {

// A stack of layers with packed weights and a hidden state for B rows. Every element has type T.
// G is the number of gates, 1 for plain units. Only one call may run at a time.
template <class T> class Stepper {
public:
  struct Layer {
    const T* w_ih; // [G H, I] in layer 0, otherwise [G H, H]
    const T* w_hh; // [G H, H]
    const T* b_ih; // [G H]; nullptr: zeros
    const T* b_hh; // [G H]; nullptr: zeros
    // For leaky units; the cell, which must not be gated, is then ignored. There is no noise.
    const T* alpha = nullptr; // [H]; nullptr: the units are not leaky
    bool current = false;     // as in Leak
    Nonlinearity f = Nonlinearity::kTanh;
  };

  // Copies the weights, in the layout of the instruction set that is in use at that moment; the
  // pointers are not used after the constructor. The hidden state begins as zeros. B, H and the
  // number of layers are at least 1, I is at least 0. Up to `threads` threads run where a step is
  // long enough. The results do not depend on the number of threads.
  //
  // Errors: std::bad_alloc if there is no memory for the copy.
  Stepper(int64_t B, int64_t I, int64_t H, Cell cell, int threads, const std::vector<Layer>&);
  ~Stepper();

  // Run all layers for one time step. x: [B, I], read; row b begins at x + b * x_row. out: [B, H],
  // written: the output of the last layer, which is its new state, or r of leaky units. It must not
  // overlap x.
  void step(const T* x, int64_t x_row, T* out);

  // Copy the state of all layers to `h` and `c`, or from them, each [L, B, H]. `c` is that of an
  // LSTM, and nullptr for other cells. leaky.h says what the state of leaky units is.
  void read_state(T* h, T* c) const;
  void write_state(const T* h, const T* c);

  // Set the state of row b to zero in every layer.
  void reset(int64_t b);

private:
  class Impl;
  template <class O> class ImplFor;
  std::unique_ptr<Impl> impl_;
};

} // namespace rnnfast
