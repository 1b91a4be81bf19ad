// The epilogues of leaky units; see LeakStep in isa.h.

// Apply the nonlinearity F to v.
template <class T, Nonlinearity F> RNNFAST_INLINE Vec<T> apply(Vec<T> v) {
  switch (F) {
  case Nonlinearity::kTanh:
    return tanh<T>(v);
  case Nonlinearity::kRelu:
    return v < T(0) ? Vec<T>{} : v; // NaN stays NaN
  case Nonlinearity::kSigmoid:
    return sigmoid<T>(v);
  case Nonlinearity::kSoftplus:
    return softplus<T>(v);
  case Nonlinearity::kLinear:
    break;
  }
  return v;
}

// Multiply v by the derivative of F, which is computed from y = F(x).
template <class T, Nonlinearity F> RNNFAST_INLINE Vec<T> times_derivative(Vec<T> v, Vec<T> y) {
  switch (F) {
  case Nonlinearity::kTanh:
    return v * (T(1) - y * y);
  case Nonlinearity::kRelu:
    return y <= T(0) ? Vec<T>{} : v;
  case Nonlinearity::kSigmoid:
    return v * (y * (T(1) - y));
  case Nonlinearity::kSoftplus:
    return v * softplus_derivative<T>(y);
  case Nonlinearity::kLinear:
    break;
  }
  return v;
}

// Finish a tile as `epilogue` in tile-inl.h does.
template <class S, class O, Nonlinearity F, bool kCurrent, bool kBackward, bool kWhole>
static void leaky_epilogue(const FusedProduct<S, O>& product, int64_t row, int64_t rows,
                           int64_t col, int64_t width, const Sum<S>* acc) {
  using C = Sum<S>;
  constexpr int VL = kVector<C>;
  const LeakStep<S>& leak = *product.leak;
  for (int64_t i = row; i < row + rows; ++i, acc += width) {
    for (int64_t j = 0; j < width && (kWhole || col + j < product.N); j += VL) {
      const int64_t c = col + j;
      const int64_t n = product.N - c;
      Vec<C> v = load<C>(acc + j);
      if (product.sums_before != nullptr) {
        v += load_part<kWhole, C>(product.sums_before + i * product.sums_before_stride + c, n);
      }
      if (product.addend != nullptr) {
        v += load_part<kWhole, S>(product.addend + i * product.addend_stride + c, n);
      }
      const Vec<C> alpha = load<C>(leak.alpha + c), kept = C(1) - alpha;
      C* const carry = leak.carry + i * leak.carry_stride + c;
      const Vec<C> before = load<C>(carry);
      Vec<C> operand, out;
      if constexpr (kBackward) {
        const Vec<C> y = load_part<kWhole, S>(product.h + i * product.h_stride + c, n);
        if constexpr (kCurrent) {
          out = times_derivative<C, F>(v, y) + before;
          if (product.addend2 != nullptr) {
            out += load_part<kWhole, S>(product.addend2 + i * product.addend2_stride + c, n);
          }
          operand = alpha * out;
        } else {
          out = v + before;
          operand = times_derivative<C, F>(alpha * out, y);
        }
        store<C>(carry, kept * out);
      } else {
        const Vec<C> y = kCurrent ? v : apply<C, F>(v);
        const Vec<C> state = kept * before + alpha * y;
        store<C>(carry, state);
        operand = out = kCurrent ? apply<C, F>(state) : state;
        if (leak.states != nullptr) {
          store_part<kWhole, S>(leak.states + i * leak.states_stride + c, n, state);
        }
        if (leak.saved != nullptr) {
          store_part<kWhole, S>(leak.saved + i * leak.saved_stride + c, n, y);
        }
      }
      if (product.operand != nullptr) {
        store_operand<O>(product.operand + i * product.operand_stride + c, n, operand);
      }
      if (product.out != nullptr) {
        store_part<kWhole, S>(product.out + i * product.out_stride + c, n, out);
      }
    }
  }
}

template <class S, class O, Nonlinearity F, bool kCurrent, bool kBackward>
constexpr Epilogue<S, O> kLeakyEpilogue = {leaky_epilogue<S, O, F, kCurrent, kBackward, true>,
                                           leaky_epilogue<S, O, F, kCurrent, kBackward, false>};
template <class S, class O, Nonlinearity F>
static const Epilogue<S, O>& choose_leaky_epilogue(bool current, bool backward) {
  if (current) {
    return backward ? kLeakyEpilogue<S, O, F, true, true> : kLeakyEpilogue<S, O, F, true, false>;
  }
  return backward ? kLeakyEpilogue<S, O, F, false, true> : kLeakyEpilogue<S, O, F, false, false>;
}
template <class S, class O>
static const Epilogue<S, O>& choose_leaky_epilogue(const LeakStep<S>& leak) {
  switch (leak.f) {
  case Nonlinearity::kTanh:
    return choose_leaky_epilogue<S, O, Nonlinearity::kTanh>(leak.current, leak.backward);
  case Nonlinearity::kRelu:
    return choose_leaky_epilogue<S, O, Nonlinearity::kRelu>(leak.current, leak.backward);
  case Nonlinearity::kSigmoid:
    return choose_leaky_epilogue<S, O, Nonlinearity::kSigmoid>(leak.current, leak.backward);
  case Nonlinearity::kSoftplus:
    return choose_leaky_epilogue<S, O, Nonlinearity::kSoftplus>(leak.current, leak.backward);
  case Nonlinearity::kLinear:
    break;
  }
  return choose_leaky_epilogue<S, O, Nonlinearity::kLinear>(leak.current, leak.backward);
}
