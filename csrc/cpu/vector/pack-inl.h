// How the right factor of a product lies in memory, and the functions that copy matrices and rows
// into this order. A tile then reads the factor from front to back and no cache line twice.
//
// The factor is divided into panels of one or two vectors of columns. A panel holds row after row.
// If products of pairs are used, it holds pair of rows after pair of rows, with the two elements of
// a column side by side. If 16-bit elements are widened to float, a row of a panel is one vector
// that is as wide as the panel, so such panels always have two vectors of columns.

// The number of products that one lane adds up in one multiply-add.
template <class O> constexpr int kPair = std::is_same_v<O, bfloat16> ? 2 : 1;

// Whether packed elements must be widened before they are multiplied.
template <class S, class O> constexpr bool kWidened = sizeof(S) < sizeof(O);
// The columns of a panel for a factor that has `columns` columns from there on.
template <class S, class O> constexpr int panel_width(int64_t columns) {
  return kWidened<S, O> || columns > kVector<Sum<S>> ? kPanel<Sum<S>> : kVector<Sum<S>>;
}
// The rows of a packed factor of K rows: an odd K is padded to whole pairs.
template <class O> constexpr int64_t padded_depth(int64_t K) {
  return (K + kPair<O> - 1) / kPair<O> * kPair<O>;
}
// The position in a panel of `width` columns at which element j of row k is.
template <class S, class O> constexpr int64_t packed_at(int64_t k, int64_t j, int64_t width) {
  if (kPair<O> == 2) {
    return (k / 2 * width + j) * 2 + k % 2;
  }
#if !defined(RNNFAST_WIDEN_F16)
  constexpr bool interleaved = kWidened<S, O>;
#else
  constexpr bool interleaved = std::is_same_v<S, bfloat16> && kWidened<S, O>;
#endif
  // Columns j and j + kVector are in the two halves of one lane, so that widening the row to two
  // vectors takes one operation for each.
  return k * width + (interleaved ? j % kVector<Sum<S>> * 2 + j / kVector<Sum<S>> : j);
}

// Combine two rows of bfloat16, widened to float, to pairs: each lane gets the elements of both
// rows side by side.
RNNFAST_INLINE Vec<float> pairs(Vec<float> first, Vec<float> second) {
  using Unsigned = typename Lanes<float>::Unsigned;
  return (Vec<float>)((Unsigned)first >> 16 | (Unsigned)second);
}

// The number of the lane that comes to lane `lane` of the lower or the upper one of two vectors
// that exchange blocks of kStep lanes. The lanes of the upper vector have the numbers after those
// of the lower one.
template <class T, int kStep, bool kUpper> constexpr int exchanged(int lane) {
  return (lane & kStep ? kVector<T> + lane - kStep : lane) + (kUpper ? kStep : 0);
}
template <class T, int kStep, bool kUpper, int... kLanes>
RNNFAST_INLINE Vec<T> exchange(Vec<T> lower, Vec<T> upper, std::integer_sequence<int, kLanes...>) {
#if defined(__clang__) // Clang has no __builtin_shuffle, and GCC 11 has no __builtin_shufflevector.
  return __builtin_shufflevector(lower, upper, exchanged<T, kStep, kUpper>(kLanes)...);
#else
  return __builtin_shuffle(lower, upper,
                           typename Lanes<T>::Bits{exchanged<T, kStep, kUpper>(kLanes)...});
#endif
}

// Transpose a square block in as many vectors as a vector has lanes.
template <class T, int kStep = 1> RNNFAST_INLINE void transpose(Vec<T>* rows) {
  constexpr int VL = kVector<T>;
  if constexpr (kStep < VL) {
    constexpr auto kLanes = std::make_integer_sequence<int, VL>();
#pragma GCC unroll 16
    for (int i = 0; i < VL; ++i) {
      if ((i & kStep) == 0) {
        const Vec<T> lower = rows[i], upper = rows[i + kStep];
        rows[i] = exchange<T, kStep, false>(lower, upper, kLanes);
        rows[i + kStep] = exchange<T, kStep, true>(lower, upper, kLanes);
      }
    }
    transpose<T, 2 * kStep>(rows);
  }
}

// Transpose a square block of as many vectors as a vector has lanes. The vectors begin `stride`
// bytes apart at `from`. Lane i of all of them becomes vector i of `to`, whose vectors begin
// `to_stride` elements apart.
template <class T>
RNNFAST_INLINE void transpose_block(const void* from, int64_t stride, T* to, int64_t to_stride) {
  constexpr int VL = kVector<T>;
  Vec<T> rows[VL];
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) {
    std::memcpy(&rows[i], static_cast<const char*>(from) + i * stride, sizeof rows[i]);
  }
  transpose<T>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) {
    store<T>(to + i * to_stride, rows[i]);
  }
}

// See VectorKernels::pack. The panel that begins with a column lies at packed + column *
// padded_depth, and packed_at gives the places of its elements. The last panel has one vector of
// columns if that is enough.
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
    // Vector code packs the first j_done columns of the first k_done rows. The loops pack the rest.
    int64_t k_done = 0, j_done = 0;
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
    if constexpr (!kWidened<S, O>) { // an element, or a pair, is packed as it stands
      k_done = K / kLine * kLine, j_done = used / kVector<C> * kVector<C>;
      for (int64_t k = 0; k < k_done; k += kVector<C> * kPair<O>) {
        for (int64_t j = 0; j < j_done; j += kVector<C>) {
          transpose_block<C>(w + (c + j) * K + k, K * sizeof(S),
                             reinterpret_cast<C*>(to + packed_at<S, O>(k, j, width)), width);
        }
      }
    }
    // The loops read one cache line of each column at a time. If K is a power of two, the columns
    // share a few cache sets, and a line would leave the cache before its second element is read.
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

// See VectorKernels::pack_rows. The right factors of OuterProducts are packed as O, the type in
// which they are multiplied. Eight rows are packed at a time, because a single row goes to as many
// places as there are panels, and these places are in the same cache sets.
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

// Store n elements of a left factor that the next product reads, or a whole vector if there are
// more. The lanes after the last column may be NaN, from 0 times infinity. A product of pairs reads
// the first of them.
template <class O> RNNFAST_INLINE void store_operand(O* p, int64_t n, Vec<Sum<O>> v) {
  store_sum<O>(p, v);
  if (kPair<O> == 2 && n < kVector<Sum<O>>) {
    p[n] = O{};
  }
}

// See VectorKernels::widen.
template <class S, class O> static void widen_row(const S* row, int64_t n, O* operand) {
  for (int64_t c = 0; c < n; c += kVector<Sum<S>>) {
    store_sum<O>(operand + c, load_edge<S>(row + c, n - c));
  }
}

// See VectorKernels::narrow.
template <class S> static void narrow_row(const Sum<S>* row, int64_t n, S* out) {
  for (int64_t c = 0; c < n; c += kVector<Sum<S>>) {
    store_edge<S>(out + c, n - c, load_edge<Sum<S>>(row + c, n - c));
  }
}
