// A time step of a reservoir: the product of the sparse matrix and the state, and an epilogue with
// the nonlinearity and the leak. sparse.h describes the matrix.

// Return the sums of a far chunk. Loads of single elements are as fast as the gather instructions
// of Intel's CPUs and faster than those of AMD's.
template <class T> RNNFAST_INLINE Vec<T> far_sums(const Chunk<T>& chunk, const T* state) {
  constexpr int VL = kVector<T>;
  Vec<T> sums{};
  const uint32_t* column = chunk.columns;
  const T* value = chunk.values;
  for (int64_t slot = 0; slot < chunk.slots; ++slot, column += VL, value += VL) {
    Vec<T> elements{};
#pragma GCC unroll 16
    for (int i = 0; i < VL; ++i) {
      elements[i] = state[column[i]];
    }
    sums += load<T>(value) * elements;
  }
  return sums;
}

#if defined(RNNFAST_PICK)
// Return the sums of a near chunk. Two sums take turns, because each waits for its last addition.
RNNFAST_INLINE Vec<float> near_sums(const Chunk<float>& chunk, const float* state) {
  constexpr int VL = kVector<float>;
  const auto product = [&](int64_t slot) {
    const float* const pair = state + chunk.vectors[slot];
    return load<float>(chunk.values + slot * VL) *
           RNNFAST_PICK(load<float>(pair), load<float>(pair + VL), chunk.picked + slot * VL);
  };
  Vec<float> even{}, odd{};
  int64_t slot = 0;
  for (; slot + 2 <= chunk.slots; slot += 2) {
    even += product(slot);
    odd += product(slot + 1);
  }
  if (slot < chunk.slots) {
    even += product(slot);
  }
  return even + odd;
}
#endif

// Finish the vector of units that begins at unit c. kWhole means that all of them exist.
template <class T, Nonlinearity F, bool kWhole>
RNNFAST_INLINE void finish_units(const ReservoirStep<T>& step, int64_t c, Vec<T> sums) {
  const Vec<T> v = sums + load<T>(step.pre + c), a = load<T>(step.alpha + c), keep = T(1) - a;
  Vec<T> r;
  if (step.s != nullptr) {
    const Vec<T> s = keep * load<T>(step.s + c) + a * v;
    store<T>(step.s + c, s);
    r = apply<T, F>(s);
  } else {
    r = keep * load<T>(step.before + c) + a * apply<T, F>(v);
  }
  store_part<kWhole, T>(step.after + c, step.H - c, r);
  store_part<kWhole, T>(step.out + c, step.H - c, r);
}

template <class T, Nonlinearity F>
static void finish_strip(const ReservoirStep<T>& step, int64_t begin, const T* sums) {
  constexpr int VL = kVector<T>;
  const int64_t end = begin + kStripChunks * VL < step.H ? begin + kStripChunks * VL : step.H;
  int64_t c = begin;
  for (; c + VL <= end; c += VL) {
    finish_units<T, F, true>(step, c, load<T>(sums + c - begin));
  }
  if (c < end) {
    finish_units<T, F, false>(step, c, load<T>(sums + c - begin));
  }
}

template <class T, Nonlinearity F> static void reservoir_strips(const ReservoirStep<T>& step) {
  constexpr int VL = kVector<T>;
  const int64_t chunks = (step.H + VL - 1) / VL;
  if ((step.strip_end - step.strip_begin) * kStripChunks < chunks) {
    // Other threads have just written a part of the state, so all of it is fetched at once.
    for (int64_t c = 0; c < step.H; c += 64 / sizeof(T)) {
      __builtin_prefetch(step.before + c);
    }
  }
  for (int64_t strip = step.strip_begin; strip < step.strip_end; ++strip) {
    alignas(64) T sums[kStripChunks * VL];
    for (int64_t i = 0; i < kStripChunks && strip * kStripChunks + i < chunks; ++i) {
      const Chunk<T>& chunk = step.chunks[strip * kStripChunks + i];
      Vec<T> sum;
#if defined(RNNFAST_PICK)
      if constexpr (std::is_same_v<T, float>) {
        sum = chunk.vectors != nullptr ? near_sums(chunk, step.before)
                                       : far_sums<T>(chunk, step.before);
      } else
#endif
        sum = far_sums<T>(chunk, step.before);
      if (chunk.rows == nullptr) {
        store<T>(sums + i * VL, sum);
      } else {
#pragma GCC unroll 16
        for (int lane = 0; lane < VL; ++lane) {
          sums[chunk.rows[lane]] = sum[lane];
        }
      }
    }
    finish_strip<T, F>(step, strip * kStripChunks * VL, sums);
  }
}

// Call `run` with a type whose `value` is f.
template <class Run> RNNFAST_INLINE void with_constant(Nonlinearity f, const Run& run) {
  switch (f) {
  case Nonlinearity::kTanh:
    return run(std::integral_constant<Nonlinearity, Nonlinearity::kTanh>());
  case Nonlinearity::kRelu:
    return run(std::integral_constant<Nonlinearity, Nonlinearity::kRelu>());
  case Nonlinearity::kSigmoid:
    return run(std::integral_constant<Nonlinearity, Nonlinearity::kSigmoid>());
  case Nonlinearity::kSoftplus:
    return run(std::integral_constant<Nonlinearity, Nonlinearity::kSoftplus>());
  case Nonlinearity::kLinear:
    return run(std::integral_constant<Nonlinearity, Nonlinearity::kLinear>());
  }
}

// See ReservoirKernels.
template <class T> static void reservoir_step(const ReservoirStep<T>& step) {
  with_constant(step.f, [&](auto f) { reservoir_strips<T, decltype(f)::value>(step); });
}
template <class T> static void reservoir_activate(Nonlinearity f, const T* v, int64_t n, T* out) {
  with_constant(f, [&](auto constant) {
    for (int64_t c = 0; c < n; c += kVector<T>) {
      const Vec<T> r = apply<T, decltype(constant)::value>(load_edge<T>(v + c, n - c));
      store_edge<T>(out + c, n - c, r);
    }
  });
}

#if defined(RNNFAST_PICK)
template <class T> constexpr bool kNear = std::is_same_v<T, float>;
#else
template <class T> constexpr bool kNear = false;
#endif
template <class T>
constexpr ReservoirKernels<T> kReservoirKernels = {kNear<T>, reservoir_step<T>,
                                                   reservoir_activate<T>};
