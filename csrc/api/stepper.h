// The contract of a recurrent network that gets one time step at a time, for streams whose next
// input is not known yet. It computes what `forward` in rnn.h computes.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "element.h"
#include "leaky.h"

namespace rnnfast {

// A stack of layers with packed weights and a hidden state for B rows. Every element has type T.
// Only one call may run at a time.
template <class T> class Stepper {
public:
  struct Layer {
    const T* w_ih; // [H, I] in layer 0, otherwise [H, H]
    const T* w_hh; // [H, H]
    const T* b_ih; // [H]; nullptr: zeros
    const T* b_hh; // [H]; nullptr: zeros
    // For leaky units; Stepper::relu is then ignored. There is no noise.
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
  Stepper(int64_t B, int64_t I, int64_t H, bool relu, int threads, const std::vector<Layer>&);
  ~Stepper();

  // Run all layers for one time step. x: [B, I], read; row b begins at x + b * x_row. out: [B, H],
  // written: the output of the last layer, which is its new state, or r of leaky units. It must not
  // overlap x.
  void step(const T* x, int64_t x_row, T* out);

  // Copy the state of all layers, [L, B, H], to `h` or from `h`. leaky.h says what the state of
  // leaky units is.
  void read_state(T* h) const;
  void write_state(const T* h);

  // Set the state of row b to zero in every layer.
  void reset(int64_t b);

private:
  class Impl;
  template <class O> class ImplFor;
  std::unique_ptr<Impl> impl_;
};

} // namespace rnnfast
