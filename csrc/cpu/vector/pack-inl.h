// How the right factor of a product lies in memory, and the functions that copy matrices and rows
// into that order.

// The elements of O that meet in one multiply-add of one lane.
template <class O> constexpr int kPair = std::is_same_v<O, bfloat16> ? 2 : 1;

// How a right factor is packed. Panels of NV vectors of columns; in a panel row by row or, for
// products of pairs, pair of rows by pair of rows, the two elements of a column side by side. A row
// of 16-bit elements that are to be widened is one vector of the whole panel's width, so those
// panels are never narrow.
template <class S, class O> constexpr bool kWidened = sizeof(S) < sizeof(O);
template <class S, class O> constexpr int panel_width(int64_t columns) {
  return kWidened<S, O> || columns > kVector<Sum<S>> ? kPanel<Sum<S>> : kVector<Sum<S>>;
}
template <class O> constexpr int64_t padded_depth(int64_t K) {
  return (K + kPair<O> - 1) / kPair<O> * kPair<O>;
}
// Where in a panel element j of row k is.
template <class S, class O> constexpr int64_t packed_at(int64_t k, int64_t j, int64_t width) {
  if (kPair<O> == 2) {
    return (k / 2 * width + j) * 2 + k % 2;
  }
#if !defined(RNNFAST_WIDEN_F16)
  constexpr bool interleaved = kWidened<S, O>;
#else
  constexpr bool interleaved = std::is_same_v<S, bfloat16> && kWidened<S, O>;
#endif
  // In the two halves of the lanes of one vector, columns j and j + kVector: widening takes one
  // operation each.
  return k * width + (interleaved ? j % kVector<Sum<S>> * 2 + j / kVector<Sum<S>> : j);
}

// Of two rows of bfloat16 the elements of each lane side by side, as products of pairs take them.
RNNFAST_INLINE Vec<float> pairs(Vec<float> first, Vec<float> second) {
  using Unsigned = typename Lanes<float>::Unsigned;
  return (Vec<float>)((Unsigned)first >> 16 | (Unsigned)second);
}

// The vectors at `from`, `stride` bytes from one to the next, as many as each has lanes: the i-th
// lanes of all become the i-th vector of `to`.
template <class T>
RNNFAST_INLINE void transpose_block(const void* from, int64_t stride, T* to, int64_t to_stride) {
  constexpr int VL = kVector<T>;
  Vec<T> rows[VL];
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) {
    std::memcpy(&rows[i], static_cast<const char*>(from) + i * stride, sizeof rows[i]);
  }
#pragma GCC unroll 4
  for (int step = 1; step < VL; step *= 2) {
    typename Lanes<T>::Bits low{}, high{}; // lanes of b are numbered after those of a
#pragma GCC unroll 16
    for (int i = 0; i < VL; ++i) {
      low[i] = i & step ? VL + i - step : i;
      high[i] = i & step ? VL + i : i + step;
    }
#pragma GCC unroll 16
    for (int i = 0; i < VL; ++i) {
      if ((i & step) == 0) {
        const Vec<T> a = rows[i], b = rows[i + step];
        rows[i] = __builtin_shuffle(a, b, low);
        rows[i + step] = __builtin_shuffle(a, b, high);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) {
    store<T>(to + i * to_stride, rows[i]);
  }
}

// Panel p holds columns [p * kPanel, ...); its elements are where packed_at says, and begin at
// packed + column * padded_depth. The last is one vector wide where that is enough.
template <class S, class O>
static void pack(const S* w, bool transpose, int64_t K, int64_t N, int64_t col_begin,
                 int64_t col_end, S* packed) {
  using C = Sum<S>;
  constexpr int64_t kLine = 64 / sizeof(S), kWide = kPanel<C>;
  for (int64_t c = col_begin; c < col_end; c += kWide) {
    const int64_t used = N - c < kWide ? N - c : kWide;
    const int64_t width = panel_width<S, O>(used), depth = padded_depth<O>(K);
    S* to = packed + c * depth;
    if (used < width || K < depth) {
      std::memset(static_cast<void*>(to), 0, depth * width * sizeof(S));
    }
    int64_t k_done = 0, j_done = 0; // so many rows of so many columns by whole vectors
    if (!transpose) {
      if constexpr (kPair<O> == 2) {
        k_done = K / 2 * 2, j_done = used / kVector<C> * kVector<C>;
        for (int64_t k = 0; k < k_done; k += 2) {
          for (int64_t j = 0; j < j_done; j += kVector<C>) {
            const S* const from = w + k * N + c + j;
            const Vec<C> both = pairs(load_as_sum<S>(from), load_as_sum<S>(from + N));
            store<C>(reinterpret_cast<C*>(to + packed_at<S, O>(k, j, width)), both);
          }
        }
      }
      for (int64_t k = 0; k < K; ++k) {
        if constexpr (std::is_same_v<S, O> && kPair<O> == 1) {
          std::memcpy(to + k * width, w + k * N + c, used * sizeof(S));
        } else {
          for (int64_t j = k < k_done ? j_done : 0; j < used; ++j) {
            to[packed_at<S, O>(k, j, width)] = w[k * N + c + j];
          }
        }
      }
      continue;
    }
#if !defined(__clang__)              // has no __builtin_shuffle
    if constexpr (!kWidened<S, O>) { // an element, or a pair, is packed as it stands
      k_done = K / kLine * kLine, j_done = used / kVector<C> * kVector<C>;
      for (int64_t k = 0; k < k_done; k += kVector<C> * kPair<O>) {
        for (int64_t j = 0; j < j_done; j += kVector<C>) {
          transpose_block<C>(w + (c + j) * K + k, K * sizeof(S),
                             reinterpret_cast<C*>(to + packed_at<S, O>(k, j, width)), width);
        }
      }
    }
#endif
    // A cache line of each column at a time: with a power of two for K whole columns share a few
    // cache sets, and a line would be gone before its second element is read.
    for (int64_t k0 = 0; k0 < K; k0 += kLine) {
      const int64_t k1 = K - k0 < kLine ? K : k0 + kLine;
      for (int64_t j = k0 < k_done ? j_done : 0; j < used; ++j) {
        for (int64_t k = k0; k < k1; ++k) {
          to[packed_at<S, O>(k, j, width)] = w[(c + j) * K + k];
        }
      }
    }
  }
}

// The right factors of OuterProducts are packed as they are multiplied: as O. Eight rows at a time,
// for one alone would go to as many places, all in the same cache sets, as there are panels.
template <class S, class O>
static void pack_rows(const S* const* rows, int64_t K, int64_t N, O* packed) {
  using C = Sum<S>;
  constexpr int64_t VL = kVector<C>, kRows = 8;
  const int64_t depth = padded_depth<O>(K);
  for (int64_t k0 = 0; k0 < K; k0 += kRows) {
    for (int64_t c = 0; c < N; c += VL) {
      const int64_t panel = c / kPanel<C> * kPanel<C>;
      const int64_t width = panel_width<O, O>(N - panel);
      for (int64_t k = k0; k < K && k < k0 + kRows; k += kPair<O>) {
        Vec<C> v = rows[k] != nullptr ? load_edge<S>(rows[k] + c, N - c) : Vec<C>{};
        if constexpr (kPair<O> == 2) {
          const S* const other = k + 1 < K ? rows[k + 1] : nullptr;
          v = pairs(v, other != nullptr ? load_edge<S>(other + c, N - c) : Vec<C>{});
        }
        O* const to = packed + panel * depth + packed_at<O, O>(k, c - panel, width);
        store<C>(reinterpret_cast<C*>(to), v);
      }
    }
  }
}

template <class S, class O> static void widen_row(const S* row, int64_t n, O* operand) {
  for (int64_t c = 0; c < n; c += kVector<Sum<S>>) {
    store_sum<O>(operand + c, load_edge<S>(row + c, n - c));
  }
}

template <class S> static void narrow_row(const Sum<S>* row, int64_t n, S* out) {
  for (int64_t c = 0; c < n; c += kVector<Sum<S>>) {
    store_edge<S>(out + c, n - c, load_edge<Sum<S>>(row + c, n - c));
  }
}
