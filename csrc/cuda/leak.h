// The nonlinearities of leaky units, forward and backward; see ../api/leaky.h.
#pragma once

#include "element.h"
#include "recurrence.h"

namespace rnnfast::cuda {

// The five functions are four formulas, of which the last has a coefficient. Each formula has the
// function, and the product of v with its derivative, which is computed from the value y of the
// function.

template <class E> struct TanhUnits {
  using Sum = typename E::Sum;

  RNNFAST_DEVICE Sum value(Sum x) const { return E::tanh(x); }
  RNNFAST_DEVICE Sum times_derivative(Sum v, Sum y) const { return v * (1 - y * y); }
};

// This is not computed as tanh(x / 2) / 2 + 1 / 2, which has a large relative error where x is
// negative. Where exp(-x) is infinite, the value is 0.
template <class E> struct SigmoidUnits {
  using Sum = typename E::Sum;

  RNNFAST_DEVICE Sum value(Sum x) const { return device::reciprocal(1 + std::exp(-x)); }
  RNNFAST_DEVICE Sum times_derivative(Sum v, Sum y) const { return v * ((1 - y) * y); }
};

template <class E> struct SoftplusUnits {
  using Sum = typename E::Sum;

  RNNFAST_DEVICE Sum value(Sum x) const {
    return (x < 0 ? Sum(0) : x) + std::log1p(std::exp(-std::abs(x)));
  }
  RNNFAST_DEVICE Sum times_derivative(Sum v, Sum y) const { return v * -std::expm1(-y); }
};

// x, or max(x, 0), where NaN stays NaN.
template <class E> struct LinearUnits {
  using Sum = typename E::Sum;
  bool relu;

  RNNFAST_DEVICE Sum value(Sum x) const { return relu && x < 0 ? Sum(0) : x; }
  RNNFAST_DEVICE Sum times_derivative(Sum v, Sum y) const { return relu && y <= 0 ? Sum(0) : v; }
};

// Calls `use` with the formula of f. All threads of a launch take the same one. With five formulas
// the compiler would make a table of jumps, whose ways disassemble.py cannot follow. With four it
// makes such tables only after the loop of some backward kernels, for dh0.
template <class E, class Use>
RNNFAST_DEVICE void with_nonlinearity(Nonlinearity f, const Use& use) {
  if (f == Nonlinearity::kTanh) {
    use(TanhUnits<E>());
  } else if (f == Nonlinearity::kSigmoid) {
    use(SigmoidUnits<E>());
  } else if (f == Nonlinearity::kSoftplus) {
    use(SoftplusUnits<E>());
  } else {
    use(LinearUnits<E>{f == Nonlinearity::kRelu});
  }
}

// Applies f to values in place.
template <class E, int J, int U>
RNNFAST_DEVICE void apply(Nonlinearity f, typename E::Sum (&values)[J][U]) {
  with_nonlinearity<E>(f, [&](auto units) {
#pragma unroll
    for (int j = 0; j < J; ++j) {
#pragma unroll
      for (int e = 0; e < U; ++e) {
        values[j][e] = units.value(values[j][e]);
      }
    }
  });
}

// Multiplies values in place by the derivative of f, which has the values `y`.
template <class E, int J, int U>
RNNFAST_DEVICE void multiply_by_derivative(Nonlinearity f, typename E::Sum (&values)[J][U],
                                           const typename E::Stored (&y)[J][U]) {
  with_nonlinearity<E>(f, [&](auto units) {
#pragma unroll
    for (int j = 0; j < J; ++j) {
#pragma unroll
      for (int e = 0; e < U; ++e) {
        values[j][e] = units.times_derivative(values[j][e], E::load(y[j][e]));
      }
    }
  });
}

} // namespace rnnfast::cuda
