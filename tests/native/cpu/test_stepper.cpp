// Tests the network that gets one time step at a time.
#include "api/stepper.h"

#include <cmath>
#include <string>
#include <vector>

#include "api/rnn.h"
#include "support.h"

namespace {

// Every step must give the state that the recurrence gives for the whole sequence. Gated layers
// have both biases.
template <class T>
void check_stepper(const char* type, int64_t B, int64_t I, int64_t H, int64_t L, Cell cell) {
  const int64_t T_ = 5, G = gates_of(cell);
  Random random;
  const std::vector<T> x = random.array<T>(T_ * B * I), b = random.array<T>(G * H);
  const std::vector<T> w_ih = random.array<T>(G * H * I, 1 / std::sqrt(double(I) + 1)),
                       above = random.array<T>(G * H * H, 1 / std::sqrt(double(H))),
                       w_hh = random.array<T>(G * H * H, 1 / std::sqrt(double(H)));
  const T* const b_hh = is_gated(cell) ? b.data() : nullptr;
  std::vector<typename Stepper<T>::Layer> layers;
  for (int64_t l = 0; l < L; ++l) {
    layers.push_back({l == 0 ? w_ih.data() : above.data(), w_hh.data(), b.data(), b_hh});
  }
  for (const Isa* isa : isas_to_test()) {
    set_isa(isa->name);
    const std::string name = std::string(isa->name) + " stepper " + type +
                             " B=" + std::to_string(B) + " H=" + std::to_string(H) +
                             " G=" + std::to_string(G);
    std::vector<std::vector<T>> h(L, std::vector<T>(T_ * B * H));
    std::vector<Forward<T>> stack;
    Gates<T> gates{};
    gates.cell = gated(cell);
    for (int64_t l = 0; l < L; ++l) {
      Forward<T> f{};
      f.I = l == 0 ? I : H, f.w_ih = layers[l].w_ih, f.w_hh = w_hh.data(), f.b_ih = b.data();
      f.b_hh = b_hh, f.gates = is_gated(cell) ? &gates : nullptr;
      f.x = {l == 0 ? x.data() : h[l - 1].data(), B * f.I, f.I};
      f.h = {h[l].data(), B * H, H};
      stack.push_back(f);
    }
    forward(Shape{T_, B, H, nullptr, cell == Cell::kRelu, 1}, L, 1, stack.data());
    std::vector<T> of_one_thread;
    for (int threads : thread_counts({1, 3})) {
      Stepper<T> stepper(B, I, H, cell, threads, layers);
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
      std::vector<T> state(2 * L * B * H), zero(2 * L * B * H);
      T* const c = cell == Cell::kLstm ? state.data() + L * B * H : nullptr;
      stepper.read_state(state.data(), c);
      stepper.write_state(state.data(), c);
      for (int64_t row = 0; row < B; ++row) {
        stepper.reset(row);
      }
      stepper.read_state(state.data(), c);
      if (std::memcmp(state.data(), zero.data(), state.size() * sizeof(T)) != 0) {
        fail(name + ": the state is not zero after a reset");
      }
    }
  }
  set_isa("");
}

} // namespace

void test_stepper() {
  check_stepper<float>("float", 1, 16, 33, 1, Cell::kTanh);
  check_stepper<float>("float", 2, 300, 700, 2, Cell::kTanh); // large enough for several threads
  check_stepper<double>("double", 3, 5, 7, 3, Cell::kRelu);
  check_stepper<bfloat16>("bfloat16", 2, 3, 17, 2, Cell::kTanh);
  check_stepper<float16>("float16", 9, 1, 65, 1, Cell::kRelu);
  for (const Cell cell : {Cell::kGru, Cell::kLstm}) {
    check_stepper<float>("float", 1, 16, 33, 1, cell);
    check_stepper<float>("float", 2, 150, 350, 2, cell); // large enough for several threads
    check_stepper<double>("double", 3, 5, 7, 3, cell);
    check_stepper<bfloat16>("bfloat16", 2, 3, 17, 2, cell);
    check_stepper<float16>("float16", 9, 1, 65, 1, cell);
  }
}
