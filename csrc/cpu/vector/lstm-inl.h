// The cell of an LSTM; see api/gated.h.

struct LstmCell {
  static constexpr int kGates = 4, kSaved = saved_of(GatedCell::kLstm), kGradients = 4;

  // Compute h and the next c, which replaces `carry`. x and h have the parts of the gates'
  // arguments that come from the input and from the state.
  template <class T>
  RNNFAST_INLINE Vec<T> forward(const Vec<T>* x, const Vec<T>* h, Vec<T>& carry, Vec<T>* saved) {
    const Vec<T> i = sigmoid<T>(x[0] + h[0]), f = sigmoid<T>(x[1] + h[1]);
    const Vec<T> g = tanh<T>(x[2] + h[2]), o = sigmoid<T>(x[3] + h[3]);
    const Vec<T> c = f * carry + i * g, y = tanh<T>(c);
    saved[0] = y * (o * (T(1) - o));
    saved[1] = o * (T(1) - y * y);
    saved[2] = g * (i * (T(1) - i));
    saved[3] = carry * (f * (T(1) - f));
    saved[4] = i * (T(1) - g * g);
    saved[5] = f;
    carry = c;
    return o * y;
  }

  // Compute the gradients of the arguments of i, f, g and o from the gradient of h.
  template <class T>
  RNNFAST_INLINE void backward(Vec<T> dh, const Vec<T>* saved, Vec<T>& carry, Vec<T>* gradients) {
    const Vec<T> dc = carry + dh * saved[1];
    gradients[0] = dc * saved[2];
    gradients[1] = dc * saved[3];
    gradients[2] = dc * saved[4];
    gradients[3] = dh * saved[0];
    carry = dc * saved[5];
  }
};
