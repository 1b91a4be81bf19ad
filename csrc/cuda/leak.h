// The nonlinearities of leaky units, forward and backward; see ../api/leaky.h.
#pragma once

#include "element.h"
#include "recurrence.h"

namespace rnnfast::cuda {

// The five functions are three formulas with coefficients. Each formula has the function, and the
// product of v with its derivative, which is computed from the value y of the function.

// tanh(x), or sigmoid(x) = tanh(x / 2) / 2 + 1 / 2.
template <class E> struct SmoothUnits {
  using Sum = typename E::Sum;
  bool sigmoid;

  RNNFAST_DEVICE Sum value(Sum x) const {
    const Sum scale = sigmoid ? Sum(0.5) : Sum(1), shift = sigmoid ? Sum(0.5) : Sum(0);
    return scale * E::tanh(scale * x) + shift;
  }
  RNNFAST_DEVICE Sum times_derivative(Sum v, Sum y) const { // 1 - y^2 or y (1 - y)
    const Sum one = sigmoid ? Sum(0) : Sum(1);
    return v * ((1 - one - y) * y + one);
  }
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
// the compiler would make a table of jumps, whose ways disassemble.py cannot follow.
template <class E, class Use>
RNNFAST_DEVICE void with_nonlinearity(Nonlinearity f, const Use& use) {
  if (f == Nonlinearity::kTanh || f == Nonlinearity::kSigmoid) {
    use(SmoothUnits<E>{f == Nonlinearity::kSigmoid});
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
