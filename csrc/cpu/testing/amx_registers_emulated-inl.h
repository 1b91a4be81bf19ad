// Tile registers that compute what Intel's manual defines: the first and the second elements of the
// pairs are multiplied and summed separately, the two sums are added at the end, and subnormal
// numbers count as zeros.
struct TileRegisters {
  struct Tile {
    int rows, row_bytes;
    alignas(64) unsigned char data[16][64];
  };
  static thread_local Tile tiles[8];

  static void configure(const unsigned char* config) {
    for (int t = 0; t < 8; ++t) {
      uint16_t row_bytes;
      std::memcpy(&row_bytes, config + 16 + 2 * t, sizeof row_bytes);
      tiles[t] = {config[48 + t], row_bytes, {}};
    }
  }
  static void release() {
    const unsigned char nothing[64] = {};
    configure(nothing);
  }
  template <int T> static void zero() { std::memset(tiles[T].data, 0, sizeof tiles[T].data); }
  template <int T> static void load(const void* from, int64_t stride) {
    zero<T>();
    for (int i = 0; i < tiles[T].rows; ++i) {
      const char* const row = static_cast<const char*>(from) + i * stride;
      std::memcpy(tiles[T].data[i], row, tiles[T].row_bytes);
    }
  }
  template <int T> static void store(void* to, int64_t stride) {
    for (int i = 0; i < tiles[T].rows; ++i) {
      char* const row = static_cast<char*>(to) + i * stride;
      std::memcpy(row, tiles[T].data[i], tiles[T].row_bytes);
    }
  }
  static float element(const Tile& tile, int row, int k) {
    uint16_t half;
    std::memcpy(&half, tile.data[row] + 2 * k, sizeof half);
    const uint32_t bits = (half & 0x7F80) == 0 ? 0 : uint32_t(half) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  template <int C, int A, int B> static void multiply_add() {
    for (int i = 0; i < tiles[C].rows; ++i) {
      float sums[16], even[16] = {}, odd[16] = {};
      std::memcpy(sums, tiles[C].data[i], sizeof sums);
      for (int k = 0; k < tiles[A].row_bytes / 4; ++k) {
        for (int j = 0; j < tiles[C].row_bytes / 4; ++j) {
          even[j] += element(tiles[A], i, 2 * k) * element(tiles[B], k, 2 * j);
          odd[j] += element(tiles[A], i, 2 * k + 1) * element(tiles[B], k, 2 * j + 1);
        }
      }
      for (int j = 0; j < 16; ++j) {
        const float sum = sums[j] + (even[j] + odd[j]);
        sums[j] = __builtin_fabsf(sum) < 0x1p-126f ? 0.0f : sum;
      }
      std::memcpy(tiles[C].data[i], sums, sizeof sums);
    }
  }
};
thread_local TileRegisters::Tile TileRegisters::tiles[8];
