// The cell of a GRU; see api/gated.h.

struct GruCell {
  static constexpr int kGates = 3, kSaved = saved_of(GatedCell::kGru), kGradients = 4;

  // Compute the next h, which replaces `carry`. x and h have the parts of the gates' arguments that
  // come from the input and from the state.
  template <class T>
  RNNFAST_INLINE Vec<T> forward(const Vec<T>* x, const Vec<T>* h, Vec<T>& carry, Vec<T>* saved) {
    const Vec<T> r = sigmoid<T>(x[0] + h[0]), z = sigmoid<T>(x[1] + h[1]);
    const Vec<T> n = tanh<T>(x[2] + r * h[2]);
    const Vec<T> rest = T(1) - z, difference = carry - n;
    saved[0] = z * rest * difference;
    saved[1] = rest * (T(1) - n * n);
    saved[2] = r;
    saved[3] = h[2] * (r * (T(1) - r));
    saved[4] = z;
    return carry = n + z * difference;
  }

  // Compute the gradients of the arguments of n as far as it comes from the input, of r, of z, and
  // of W_hn h + b_hn, from the gradient of h.
  template <class T>
  RNNFAST_INLINE void backward(Vec<T> dh, const Vec<T>* saved, Vec<T>& carry, Vec<T>* gradients) {
    dh += carry;
    const Vec<T> dn = dh * saved[1];
    gradients[0] = dn;
    gradients[1] = dn * saved[3];
    gradients[2] = dh * saved[0];
    gradients[3] = dn * saved[2];
    carry = dh * saved[4];
  }
};
