// Dropout of elements. api/dropout.h defines which elements are dropped.

using Counters = typename Lanes<double>::Unsigned; // a vector of 64-bit numbers

// Return the outputs of SplitMix64 for a vector of states.
RNNFAST_INLINE Counters mix(Counters z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

// See VectorKernels::dropout.
template <class S>
static void dropout(const S* x, int64_t begin, int64_t end, uint64_t seed, uint32_t dropped,
                    Sum<S> scale, S* out) {
  using C = Sum<S>;
  constexpr int VL = kVector<C>, kCounters = kVector<double>;
  constexpr uint64_t kGamma = 0x9E3779B97F4A7C15; // the step from state to state
  Counters state{};
  [[maybe_unused]] Counters half{};
  for (int i = 0; i < kCounters; ++i) {
    const uint64_t element = begin + i * VL / kCounters;
    state[i] = seed + (element / 2 + 1) * kGamma;
    half[i] = element % 2 * 32;
  }
  for (int64_t i = begin; i < end; i += VL, state += VL / 2 * kGamma) {
    const Vec<C> v = load_edge<S>(x + i, end - i) * scale;
    typename Lanes<C>::Bits kept;
    if constexpr (std::is_same_v<C, float>) { // the two halves of an output are in adjacent lanes
      kept = (typename Lanes<float>::Unsigned)mix(state) >= dropped;
    } else {
      kept = (mix(state) >> half & 0xFFFFFFFF) >= dropped;
    }
    store_edge<S>(out + i, end - i, (Vec<C>)((typename Lanes<C>::Bits)v & kept));
  }
}
