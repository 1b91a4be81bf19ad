// Tests dropout.
#include "api/dropout.h"

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "support.h"

namespace {

// Compare dropout with SplitMix64 as it is defined, from one state to the next.
template <class T> void check_dropout(int64_t n, double p) {
  Random random;
  const std::vector<T> x = random.array<T>(n);
  const double dropped = std::nearbyint(p * 0x1p32);
  std::vector<double> expected;
  uint64_t state = 12345, z = 0;
  for (int64_t i = 0; i < n; ++i, z >>= 32) {
    if (i % 2 == 0) {
      z = state += 0x9E3779B97F4A7C15;
      z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
      z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
      z ^= z >> 31;
    }
    const bool kept = double(z & 0xFFFFFFFF) >= dropped;
    expected.push_back(kept ? value(x[i]) / (1 - dropped * 0x1p-32) : 0);
  }
  for (const Isa* isa : isas_to_test()) {
    set_isa(isa->name);
    const std::string name =
        std::string(isa->name) + " dropout n=" + std::to_string(n) + " p=" + std::to_string(p);
    std::vector<T> first;
    for (int threads : thread_counts({1, 2, 3, 4})) {
      Guarded<T> out(n);
      dropout(Dropout<T>{n, x.data(), 12345, p, out.data(), threads});
      const std::vector<T> found = out.take(Rows(1, n), name);
      if (threads == 1) {
        compare(found, expected, name);
        first = found;
      } else if (std::memcmp(found.data(), first.data(), n * sizeof(T)) != 0) {
        fail(name + ": " + std::to_string(threads) + " threads give other bits than one");
      }
    }
  }
  set_isa("");
}

} // namespace

void test_dropout() {
  check_dropout<float>(1, 0.5);
  check_dropout<double>(515, 0.1);
  check_dropout<bfloat16>(33, 0.9);
  check_dropout<float16>(70, 1);
  check_dropout<float>(300'011, 0.3); // large enough for several threads
}
