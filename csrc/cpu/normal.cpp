// Random numbers with a normal distribution: divides the rows over the threads. The arithmetic is
// in vector/normal-inl.h.
#include "../api/leaky.h"

#include "parallel.h"
#include "work.h"

namespace rnnfast {
namespace {

// A number takes as long as this many multiply-adds.
constexpr double kNumberWork = 64;

template <class T> void run(const Normal<T>& call) {
  using C = Sum<T>;
  const VectorKernels<T, C>& kernels = current_kernels<T, C>();
  const int64_t N = call.N;
  std::vector<C> ones(N, C(1));
  parallel(threads_for(call.threads, double(call.rows) * double(N) * kNumberWork),
           [&](int thread, int threads) {
             std::vector<C> sums(N);
             for (int64_t r = call.rows * thread / threads,
                          end = call.rows * (thread + 1) / threads;
                  r < end; ++r) {
               std::fill(sums.begin(), sums.end(), C(0));
               kernels.add_normal(call.seed, r, 0, N, N, ones.data(), sums.data());
               kernels.narrow(sums.data(), N, call.out + r * N);
             }
           });
}

} // namespace

void normal(const Normal<float>& call) { run(call); }
void normal(const Normal<double>& call) { run(call); }
void normal(const Normal<bfloat16>& call) { run(call); }
void normal(const Normal<float16>& call) { run(call); }

} // namespace rnnfast
