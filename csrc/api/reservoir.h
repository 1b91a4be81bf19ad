// The contract of a leaky recurrence whose recurrent matrix is sparse, forward in time only. It is
// the state of an echo state network (Jaeger 2001):
//
//   rate:     r_t = (1 - a) r_{t-1} + a f(W_ih x_t + W_hh r_{t-1} + b)
//   current:  s_t = (1 - a) s_{t-1} + a (W_ih x_t + W_hh r_{t-1} + b),   r_t = f(s_t)
//
// The leak `a` is one number for each unit. The state that a sequence starts with, that a reset
// makes zero and that a call returns is r for `rate` and s for `current`. For `current`, r before
// the first step is f(s).
//
// Letters, notation, checks, aliasing, lifetime and threads are those of rnn.h, except that the
// weights are copied.
#pragma once

#include <cstdint>
#include <memory>

#include "rnn.h"

namespace rnnfast {

template <class T> class Reservoir {
public:
  using Element = T;

  struct Weights {
    int64_t I, H;   // I is at least 0, H is at least 1 and less than 2^32
    const T* w_ih;  // [H, I]
    const T* bias;  // [H]; nullptr: zeros
    const T* alpha; // [H], the leak `a` of each unit

    // W_hh as compressed sparse rows: row i has the entries [starts[i], starts[i + 1]). A column
    // may occur in any order and several times in a row, in which case its values are added.
    int64_t entries;
    const int64_t* starts;  // [H + 1], rises from 0 to `entries`
    const int64_t* columns; // [entries], each in [0, H)
    const T* values;        // [entries]
  };

  struct Call {
    int64_t T_, B;              // each at least 1
    Sequence<const T> x;        // T x B x I, read
    Sequence<const T> addend;   // T x B x H, read: added to b; data == nullptr: zeros
    Sequence<const bool> reset; // T x B, read. Where it is true, the state of that row is zero
                                // before that time step. data == nullptr: no resets
    const T* first;             // [B, H], read: the initial state; nullptr: zeros
    Sequence<T> r;              // T x B x H, written
    T* last;                    // [B, H], written: the state after the last step
    Sequence<T> states;         // T x B x H, written: s_t. Only for a current; data == nullptr: not
                                // wanted
  };

  // Copies the weights into the layout of the instruction set that is in use at that moment. The
  // pointers are not used after the constructor. `current` chooses the equation. Up to `threads`
  // threads run where a call is long enough.
  //
  // Errors:
  // - std::invalid_argument: `starts` does not rise from 0 to `entries`.
  // - std::out_of_range: a column is not in [0, H).
  // - std::bad_alloc: there is no memory for the copy.
  Reservoir(const Weights&, Nonlinearity, bool current, int threads);
  ~Reservoir();

  // Run the recurrence. Several threads may call this function at the same time.
  //
  // A row whose state becomes infinite or NaN in one unit may get NaN in units that are not
  // connected with that unit. Other rows of the batch are not affected, nor is the row after its
  // next reset.
  //
  // Errors: std::bad_alloc if there is no memory for the work space. Nothing has been written.
  void run(const Call&) const;

private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

} // namespace rnnfast
