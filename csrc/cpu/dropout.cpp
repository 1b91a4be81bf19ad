// Dropout: divides the elements over the threads. The arithmetic is in vector/dropout-inl.h.
#include "../api/dropout.h"

#include "parallel.h"
#include "work.h"

namespace rnnfast {
namespace {

// The share of a thread is a multiple of this many elements, which is a multiple of every vector.
constexpr int64_t kBlock = 1024;
// An element takes as long as this many multiply-adds.
constexpr double kElementWork = 8;

template <class T> void run(const Dropout<T>& call) {
  const double dropped = std::nearbyint(call.p * 0x1p32);
  if (dropped >= 0x1p32) {
    std::fill_n(call.out, call.n, T{});
    return;
  }
  const VectorKernels<T, Sum<T>>& kernels = current_kernels<T, Sum<T>>();
  const auto scale = static_cast<Sum<T>>(1 / (1 - dropped * 0x1p-32));
  const int64_t blocks = (call.n + kBlock - 1) / kBlock;
  parallel(threads_for(call.threads, double(call.n) * kElementWork), [&](int thread, int threads) {
    const int64_t begin = blocks * thread / threads * kBlock;
    const int64_t end = std::min(call.n, blocks * (thread + 1) / threads * kBlock);
    kernels.dropout(call.x, begin, end, call.seed, static_cast<uint32_t>(dropped), scale, call.out);
  });
}

} // namespace

void dropout(const Dropout<float>& call) { run(call); }
void dropout(const Dropout<double>& call) { run(call); }
void dropout(const Dropout<bfloat16>& call) { run(call); }
void dropout(const Dropout<float16>& call) { run(call); }

} // namespace rnnfast
