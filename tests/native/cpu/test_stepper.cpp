// Tests the network that gets one time step at a time.
#include "api/stepper.h"

#include <cmath>
#include <string>
#include <vector>

#include "api/rnn.h"
#include "support.h"

namespace {

// Every step must give the state that the recurrence gives for the whole sequence.
template <class T>
void check_stepper(const char* type, int64_t B, int64_t I, int64_t H, int64_t L, bool relu) {
  const int64_t T_ = 5;
  Random random;
  const std::vector<T> x = random.array<T>(T_ * B * I), b = random.array<T>(H);
  const std::vector<T> w_ih = random.array<T>(H * I, 1 / std::sqrt(double(I) + 1)),
                       above = random.array<T>(H * H, 1 / std::sqrt(double(H))),
                       w_hh = random.array<T>(H * H, 1 / std::sqrt(double(H)));
  std::vector<typename Stepper<T>::Layer> layers;
  for (int64_t l = 0; l < L; ++l) {
    layers.push_back({l == 0 ? w_ih.data() : above.data(), w_hh.data(), b.data(), nullptr});
  }
  for (const Isa* isa : available_isas()) {
    set_isa(isa->name);
    const std::string name = std::string(isa->name) + " stepper " + type +
                             " B=" + std::to_string(B) + " H=" + std::to_string(H);
    std::vector<std::vector<T>> h(L, std::vector<T>(T_ * B * H));
    std::vector<Forward<T>> stack;
    for (int64_t l = 0; l < L; ++l) {
      Forward<T> f{};
      f.I = l == 0 ? I : H, f.w_ih = layers[l].w_ih, f.w_hh = w_hh.data(), f.b_ih = b.data();
      f.x = {l == 0 ? x.data() : h[l - 1].data(), B * f.I, f.I};
      f.h = {h[l].data(), B * H, H};
      stack.push_back(f);
    }
    forward(Shape{T_, B, H, nullptr, relu, 1}, L, 1, stack.data());
    std::vector<T> of_one_thread;
    for (int threads : thread_counts({1, 3})) {
      Stepper<T> stepper(B, I, H, relu, threads, layers);
      const Rows rows(B, H);
      std::vector<T> all;
      for (int64_t t = 0; t < T_; ++t) {
        Guarded<T> out(rows.size);
        stepper.step(x.data() + t * B * I, I, out.data());
        const std::vector<T> found = out.take(rows, name);
        all.insert(all.end(), found.begin(), found.end());
      }
      std::vector<double> expected;
      for (const T& v : h[L - 1]) {
        expected.push_back(value(v));
      }
      compare(all, expected, name);
      if (threads == 1) {
        of_one_thread = all;
      } else if (std::memcmp(all.data(), of_one_thread.data(), all.size() * sizeof(T)) != 0) {
        fail(name + ": several threads give different bits than one");
      }
      // A state that is read and written back, or reset, is the state that the next step reads.
      std::vector<T> state(L * B * H), zero(L * B * H);
      stepper.read_state(state.data());
      stepper.write_state(state.data());
      for (int64_t row = 0; row < B; ++row) {
        stepper.reset(row);
      }
      stepper.read_state(state.data());
      if (std::memcmp(state.data(), zero.data(), state.size() * sizeof(T)) != 0) {
        fail(name + ": the state is not zero after a reset");
      }
    }
  }
  set_isa("");
}

} // namespace

void test_stepper() {
  check_stepper<float>("float", 1, 16, 33, 1, false);
  check_stepper<float>("float", 2, 300, 700, 2, false); // large enough for several threads
  check_stepper<double>("double", 3, 5, 7, 3, true);
  check_stepper<bfloat16>("bfloat16", 2, 3, 17, 2, false);
  check_stepper<float16>("float16", 9, 1, 65, 1, true);
}
