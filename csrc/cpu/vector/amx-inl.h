// The products of product-inl.h and outer-inl.h for AMX, which has eight tile registers of 16 rows
// of 64 bytes. The file that includes this one defines them as `TileRegisters`.
//
//   registers 0 to 3  sums, for two times 16 rows by two vectors of columns
//   registers 4, 5    pairs of the left factor, for two times 16 rows
//   registers 6, 7    pairs of the right factor, for two vectors of columns
//
// A multiplication adds the products of 32 elements of K to the sums. So here, too, the result of a
// row does not depend on the rows and columns that it is computed with.

constexpr int64_t kTileRows = 16, kTileDepth = 32;

// Set the sizes of the tile registers for a product of `rows` rows.
static void configure_tiles(int64_t rows) {
  const int64_t first = rows < kTileRows ? rows : kTileRows;
  unsigned char config[64] = {1}; // palette 1: eight tiles of 1 KiB
  for (int t = 0; t < 8; ++t) {
    config[16 + 2 * t] = 64; // the bytes of a row
    const int64_t tile_rows = t >= 6                       ? kTileRows
                              : t == 2 || t == 3 || t == 5 ? rows - first
                                                           : first;
    config[48 + t] = static_cast<unsigned char>(tile_rows > 0 ? tile_rows : 1);
  }
  TileRegisters::configure(config);
}

// Add the products of 32 elements of K to the sums.
template <int NV, class O>
static void multiply_add_tiles(int64_t rows, const O* a, int64_t a_stride, const O* w) {
  constexpr int64_t kPairs = 2 * kTileRows; // the elements of a row of w for 16 columns
  TileRegisters::load<4>(a, a_stride * sizeof(O));
  TileRegisters::load<6>(w, NV * kPairs * sizeof(O));
  TileRegisters::multiply_add<0, 4, 6>();
  if (NV == 2) {
    TileRegisters::load<7>(w + kPairs, NV * kPairs * sizeof(O));
    TileRegisters::multiply_add<1, 4, 7>();
  }
  if (rows > kTileRows) {
    TileRegisters::load<5>(a + kTileRows * a_stride, a_stride * sizeof(O));
    TileRegisters::multiply_add<2, 5, 6>();
    if (NV == 2) {
      TileRegisters::multiply_add<3, 5, 7>();
    }
  }
}

// The counterpart of accumulate_rows in product-inl.h.
template <class S, class O, int P, int NV>
static void accumulate_rows(int64_t rows, const O* a, int64_t a_stride, const S* w,
                            int64_t panel_size, int64_t K, Sum<S>* result) {
  constexpr int64_t VL = kVector<Sum<S>>, kStride = P * NV * VL;
  const int64_t whole = K / kTileDepth * kTileDepth, more = K - whole;
  alignas(64) O rest[2 * kTileRows * kTileDepth] = {};
  for (int64_t i = 0; more > 0 && i < rows; ++i) {
    std::memcpy(rest + i * kTileDepth, a + i * a_stride + whole, more * sizeof(O));
  }
  configure_tiles(rows);
  for (int p = 0; p < P; ++p) {
    const S* const panel = w + p * panel_size;
    TileRegisters::zero<0>(), TileRegisters::zero<1>(), TileRegisters::zero<2>(),
        TileRegisters::zero<3>();
    for (int64_t k = 0; k < whole; k += kTileDepth) {
      multiply_add_tiles<NV>(rows, a + k, a_stride, panel + k * NV * VL);
    }
    if (more > 0) {
      alignas(64) O columns[kTileDepth * NV * VL] = {};
      std::memcpy(columns, panel + whole * NV * VL, padded_depth<O>(more) * NV * VL * sizeof(O));
      multiply_add_tiles<NV>(rows, rest, kTileDepth, columns);
    }
    Sum<S>* const to = result + p * NV * VL;
    TileRegisters::store<0>(to, kStride * sizeof *to);
    if (NV == 2) {
      TileRegisters::store<1>(to + VL, kStride * sizeof *to);
    }
    if (rows > kTileRows) {
      TileRegisters::store<2>(to + kTileRows * kStride, kStride * sizeof *to);
      if (NV == 2) {
        TileRegisters::store<3>(to + kTileRows * kStride + VL, kStride * sizeof *to);
      }
    }
  }
  TileRegisters::release();
}

// Compute `rows` rows from m on by NV vectors of columns from n on.
template <class S, class O, int NV>
static void outer_tile(const OuterProducts<S, O>& o, int64_t rows, const O* left,
                       int64_t left_stride, int64_t m, int64_t n) {
  alignas(64) Sum<O> acc[RNNFAST_MAX_ROWS * NV * kVector<Sum<O>>];
  prefetch_sums<NV>(o, rows, m, n);
  accumulate_rows<O, O, 1, NV>(rows, left, left_stride, o.q + n * padded_depth<O>(o.K), 0, o.K,
                               acc);
  add_up<NV>(o, rows, m, n, acc);
}

// Compute the rows [m, m + rows) of the sums. The columns of p are transposed to the rows of a left
// factor.
template <class S, class O>
static void outer_rows(const OuterProducts<S, O>& o, int64_t rows, int64_t m) {
  using C = Sum<O>;
  constexpr int64_t kStride = kOuterRows + kTileDepth;
  alignas(64) O left[RNNFAST_MAX_ROWS * kStride];
  for (int64_t k = 0; k < o.K; k += kTileDepth) {
    for (int64_t i = 0; i < rows; i += kTileRows) {
      // This may read after the last column, where the rows of p have padding.
      alignas(64) C both[kTileRows * kTileRows];
      for (int64_t j = 0; j < kTileRows; ++j) {
        const O* const from = o.p + (k + 2 * j) * o.p_stride + m + i;
        const Vec<C> first = k + 2 * j < o.K ? load_as_sum<O>(from) : Vec<C>{};
        const Vec<C> second = k + 2 * j + 1 < o.K ? load_as_sum<O>(from + o.p_stride) : Vec<C>{};
        store<C>(both + j * kTileRows, pairs(first, second));
      }
      transpose_block<C>(both, kTileRows * sizeof(C), reinterpret_cast<C*>(left + i * kStride + k),
                         kStride / 2);
    }
  }
  for (int64_t n = 0; n < o.N; n += kPanel<C>) {
    if (o.N - n > kVector<C>) {
      outer_tile<S, O, 2>(o, rows, left, kStride, m, n);
    } else {
      outer_tile<S, O, 1>(o, rows, left, kStride, m, n);
    }
  }
}
