// Tests stacks of layers and directions.
#include "api/rnn.h"
#include "support.h"

#include <memory>
#include <string>
#include <vector>

namespace {

// Several threads must give the same bits as one thread, also when they hand over to one thread
// after `questions` of them.
void check_stacks(int64_t layers, int64_t questions) {
  for (int64_t directions : {1, 2}) {
    for (int64_t B : {1, 3, 9}) {
      const int64_t T = 290, H = 129, width = directions * H;
      Random random;
      const std::vector<float> w = random.array<float>(H * width, 0.2),
                               x = random.array<float>(T * B * width),
                               dy = random.array<float>(T * B * width);
      // Some cases have resets.
      const std::unique_ptr<bool[]> resets(B == 3 ? new bool[T * B] : nullptr);
      for (int64_t i = 0; B == 3 && i < T * B; ++i) {
        resets[i] = random() < -0.8;
      }
      std::vector<std::vector<float>> expected;
      for (int threads : thread_counts({1, 2, 3, 8})) {
        std::vector<std::vector<float>> written;
        std::vector<Forward<float>> up;
        std::vector<Backward<float>> down;
        const auto rows = [&](std::vector<float>& v, int64_t d) {
          return Sequence<float>{v.data() + d * H, B * width, width};
        };
        const auto view = [&](const std::vector<float>& v, int64_t d) {
          return Sequence<const float>{v.data() + d * H, B * width, width};
        };
        written.assign(2 * layers, std::vector<float>(T * B * width));
        for (int64_t n = 0; n < layers * directions; ++n) {
          const int64_t l = n / directions, d = n % directions;
          Forward<float> f{};
          f.reverse = d == 1, f.I = width, f.x = view(l == 0 ? x : written[l - 1], 0);
          f.w_ih = w.data(), f.w_hh = w.data(), f.h = rows(written[l], d);
          up.push_back(f);
          Backward<float> g{};
          g.reverse = d == 1, g.I = width, g.x = f.x, g.w_ih = f.w_ih, g.w_hh = f.w_hh;
          g.h = view(written[l], d);
          if (l == layers - 1 || directions == 2) {
            g.dy = view(l == layers - 1 ? dy : written[layers + l + 1], d);
          }
          if (l == 0 || directions == 2) {
            g.dx = rows(written[layers + l], 0);
          }
          down.push_back(g);
        }
        const Shape shape{T, B, H, nullptr, false, threads, {resets.get(), B, 1}};
        hand_over_after(questions);
        forward(shape, layers, directions, up.data());
        backward(shape, layers, directions, down.data());
        if (threads == 1) {
          expected = written;
        } else if (written != expected) {
          fail("a stack of " + std::to_string(layers) + " layers and " +
               std::to_string(directions) + " directions, B=" + std::to_string(B) + ", " +
               std::to_string(questions) + " questions: " + std::to_string(threads) +
               " threads give different bits than one");
        }
      }
    }
  }
}

} // namespace

// Layers that run at the same time, each a few steps behind the layer below, and both directions of
// a layer, which share dx.
void test_stacks() {
  for (const int64_t questions : kHandOvers) {
    for (const int64_t layers : {1, 2}) {
      check_stacks(layers, questions);
    }
  }
  hand_over_after(INT64_MAX);
}
