// What the tests of the CPU kernels share: test data, memory that notices writes outside the
// output, and the comparison with plain loops.
//
// Inputs lie in blocks of exactly their size, so that AddressSanitizer sees a read past the end.
// Outputs lie between guards, and every byte that the contract does not let the kernels write must
// stay as it was.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "cpu/waiting.h"
#include "cpu/work.h"

using namespace rnnfast;

// One function per file test_*.cpp. It stops the program if a test fails. test_rnn returns the
// number of its cases.
int test_rnn();
void test_stacks();
void test_leaky();
void test_gated();
void test_generate();
void test_stepper();
void test_reservoir();
void test_loss();
void test_dropout();
void test_glove();

[[noreturn]] inline void fail(const std::string& message) {
  std::fprintf(stderr, "FAILED: %s\n", message.c_str());
  std::exit(1);
}

// Whether a call that wants several threads gets them. `main` finds out.
inline bool several_threads = false;

// Whether tests run with all instruction sets. `main` decides.
inline bool all_isas = true;

// The instruction sets that tests run with: all that this CPU has, or the first and the last two.
inline std::vector<const Isa*> isas_to_test() {
  std::vector<const Isa*> isas = available_isas();
  if (!all_isas && isas.size() > 3) {
    isas.erase(isas.begin() + 1, isas.end() - 2);
  }
  return isas;
}

// The numbers of threads that a test lets the kernels use. In a build without threads every call
// gets one thread. There, one call that wants more than it gets is enough.
inline std::vector<int> thread_counts(const std::vector<int>& counts) {
  std::vector<int> different;
  for (int count : counts) {
    if (several_threads || count == 1 || count == counts.back()) {
      different.push_back(count);
    }
  }
  return different;
}

// For the number of times that the threads of a call have to ask before they hand the rest of the
// call over to one of them: never, at once, and in between. Only the build with std::thread lets a
// test decide.
#if defined(RNNFAST_STD_THREADS)
constexpr int64_t kHandOvers[] = {INT64_MAX, 0, 7};
inline void hand_over_after(int64_t questions) { questions_together = questions; }
#else
constexpr int64_t kHandOvers[] = {INT64_MAX};
inline void hand_over_after(int64_t) {}
#endif

// `value` converts an element of any type to double. `from` converts back and rounds down, which is
// good enough for test data.
inline double value(double v) { return v; }
inline double value(float v) { return v; }
inline double value(bfloat16 v) { return to_sum(v); }
inline double value(float16 v) { return to_sum(v); }
template <class T> T from(double v) { return static_cast<T>(v); }
template <> inline bfloat16 from(double v) {
  const float single = static_cast<float>(v);
  uint32_t bits;
  std::memcpy(&bits, &single, sizeof bits);
  return {static_cast<uint16_t>(bits >> 16)};
}
template <> inline float16 from(double v) { // v is in [-2, 2]; |v| < 2^-14 becomes 0
  int exponent;
  const double digits = std::frexp(std::abs(v), &exponent);
  const unsigned magnitude =
      exponent < -13 ? 0 : unsigned((exponent + 14) << 10) + unsigned(digits * 2048) - 1024;
  return {static_cast<uint16_t>(magnitude | (v < 0 ? 0x8000u : 0u))};
}
template <class T> constexpr double kTolerance = 200 * std::numeric_limits<T>::epsilon();
template <> inline constexpr double kTolerance<bfloat16> = 0x1p-4;
template <> inline constexpr double kTolerance<float16> = 0x1p-7;

// Gives the same numbers on every machine and in every run.
struct Random {
  uint64_t state = 1;
  double operator()() { // uniformly distributed in [-1, 1)
    state = state * 6364136223846793005u + 1442695040888963407u;
    return double(int64_t(state) >> 11) / double(int64_t(1) << 52);
  }
  template <class T> std::vector<T> array(int64_t n, double scale = 1) {
    std::vector<T> v(n);
    for (T& x : v) {
      x = from<T>(scale * (*this)());
    }
    return v;
  }
};

// How rows of `width` elements lie in memory: where each begins, and the size of the memory up to
// the last element.
struct Rows {
  int64_t step, row, width;
  std::vector<int64_t> begins; // [T * B]: where row b of step t begins; -1 if a packed batch has no
                               // such row
  int64_t size = 0;

  Rows(int64_t step, int64_t row, int64_t width) : step(step), row(row), width(width) {}

  // A contiguous matrix.
  Rows(int64_t n, int64_t width) : Rows(0, width, width) {
    size = n * width;
    for (int64_t i = 0; i < n; ++i) {
      begins.push_back(i * width);
    }
  }
};

// How the rows of a sequence lie in memory: time step after time step or sequence after sequence,
// with or without gaps, as one half of wider rows, or as a packed batch.
enum class Layout { kTime, kStrided, kBatchFirst, kHalf, kPacked, kPackedStrided };
constexpr Layout kLayouts[] = {Layout::kTime, Layout::kStrided, Layout::kBatchFirst,
                               Layout::kHalf, Layout::kPacked,  Layout::kPackedStrided};

inline bool is_packed(Layout layout) {
  return layout == Layout::kPacked || layout == Layout::kPackedStrided;
}

// The number of rows at each time step of a sequence of T steps and at most B rows.
inline std::vector<int64_t> batch_sizes_of(Layout layout, int64_t T, int64_t B) {
  std::vector<int64_t> sizes(T);
  for (int64_t t = 0; t < T; ++t) {
    const int64_t falling = std::max<int64_t>(1, B - t * B / T);
    // A long row beside many short ones: a group of threads then has many rows.
    const int64_t short_rows = t <= T / 4 ? B : 1;
    sizes[t] = layout == Layout::kPacked          ? falling
               : layout == Layout::kPackedStrided ? short_rows
                                                  : B;
  }
  return sizes;
}

// The rows of a sequence with these batch sizes.
inline Rows rows_of(Layout layout, const std::vector<int64_t>& batch_sizes, int64_t width) {
  const int64_t T = int64_t(batch_sizes.size()), B = batch_sizes[0];
  const bool strided = layout == Layout::kStrided || layout == Layout::kPackedStrided;
  const int64_t pitch = strided ? width + 3 : layout == Layout::kHalf ? 2 * width : width;
  Rows rows(0, 0, width);
  rows.row = layout == Layout::kBatchFirst ? T * pitch : pitch;
  rows.step = layout == Layout::kBatchFirst ? pitch : B * pitch + (strided ? 5 : 0);
  int64_t packed_row = 0;
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t b = 0; b < B; ++b) {
      const int64_t begin = b >= batch_sizes[t] ? -1
                            : is_packed(layout) ? packed_row++ * rows.row
                                                : t * rows.step + b * rows.row;
      rows.begins.push_back(begin);
      rows.size = std::max(rows.size, begin + width);
    }
  }
  if (is_packed(layout)) {
    rows.step = std::numeric_limits<int64_t>::max() / 2; // the contract says that it is ignored
  }
  return rows;
}

// Memory that the kernels write, between guards.
template <class T> class Guarded {
public:
  explicit Guarded(int64_t size) : bytes_((size + 2 * kGuard) * sizeof(T), kPattern), size_(size) {}

  T* data() { return reinterpret_cast<T*>(bytes_.data()) + kGuard; }

  // Return the rows, and fail if any other byte has changed.
  std::vector<T> take(const Rows& rows, const std::string& what) {
    std::vector<char> left = bytes_;
    std::vector<T> values;
    for (int64_t begin : rows.begins) {
      if (begin >= 0) {
        values.insert(values.end(), data() + begin, data() + begin + rows.width);
        std::memset(left.data() + (kGuard + begin) * sizeof(T), kPattern, rows.width * sizeof(T));
      }
    }
    // Sanitizers make a loop over the bytes slow, but not the comparison of two vectors.
    if (left != std::vector<char>(left.size(), kPattern)) {
      const auto changed =
          std::find_if(left.begin(), left.end(), [](char byte) { return byte != kPattern; });
      fail(what + ": the kernel wrote outside its output, at element " +
           std::to_string((changed - left.begin()) / int64_t(sizeof(T)) - kGuard) + " of " +
           std::to_string(size_));
    }
    return values;
  }

private:
  static constexpr int64_t kGuard = 64;
  static constexpr char kPattern = 0x5A;
  std::vector<char> bytes_;
  int64_t size_;
};

// Memory for one output of a call, whose rows lie as `rows` says.
template <class T> struct Output {
  Rows rows;
  Guarded<T> memory;
  explicit Output(const Rows& rows) : rows(rows), memory(rows.size) {}
  Sequence<T> sequence() { return {memory.data(), rows.step, rows.row}; }
  std::vector<T> take(const std::string& name) { return memory.take(rows, name); }
};

template <class T>
void compare(const std::vector<T>& found, const std::vector<double>& expected,
             const std::string& name) {
  double scale = 0;
  for (double e : expected) {
    scale = std::max(scale, std::abs(e));
  }
  // The loops sum in a different order, so a loose tolerance is enough here. The tests in Python
  // hold the kernels to the rule that really matters, which is in tests/rule.py.
  const double tolerance = kTolerance<T> * (1 + scale);
  if (found.size() != expected.size()) {
    fail(name + ": got " + std::to_string(found.size()) + " values, expected " +
         std::to_string(expected.size()));
  }
  for (size_t i = 0; i < found.size(); ++i) {
    if (!(std::abs(value(found[i]) - expected[i]) <= tolerance)) {
      fail(name + ": element " + std::to_string(i) + " is " + std::to_string(value(found[i])) +
           ", expected " + std::to_string(expected[i]));
    }
  }
}
