// The linear layer with cross-entropy. It goes through blocks of rows, and computes the logits of a
// block slice by slice, where a slice is all rows of the block by a few classes.
//
// First, each slice is replaced by its exponentials while it is in the inner caches. They are
// relative to the largest logit that the row has in the slice. The last slice completes the sum of
// each row. Then a second pass scales the exponentials to dlogits and multiplies these by W. For
// that the exponentials of one block are kept. Computing the logits twice instead would be a fourth
// product of the size of the other three.
//
// The threads divide the rows of a block and, for dW and db, the classes. So every sum runs in the
// same order for any number of threads.
#include "../api/loss.h"

#include <limits>

#include "parallel.h"
#include "work.h"

namespace rnnfast {
namespace {

// The classes of a slice. kThreadRows rows of a slice and its part of the packed W fit into L2
// together.
constexpr int64_t kSliceClasses = 512;

// A block has about this many bytes of logits, which stay in L3 together with W.
constexpr int64_t kLogitsBytes = int64_t(1) << 24;
// A block never has fewer rows than this, because every block costs a pass over dW.
constexpr int64_t kLeastRows = 64;
// The rows that a thread takes at a time. While it goes through them, a slice of W stays in L2.
constexpr int64_t kThreadRows = 128;

template <class T> class BlockwiseLoss {
public:
  // Allocates for up to `most_threads` threads.
  BlockwiseLoss(const LinearCrossEntropy<T>& call, int most_threads)
      : c_(call), kernels_(current_kernels<T>()),
        slices_((call.V + kSliceClasses - 1) / kSliceClasses),
        ld_(row_stride<T>(std::min(kSliceClasses, call.V))),
        gradients_(call.dx != nullptr || call.dw != nullptr || call.db != nullptr),
        most_rows_(rows_of_block(call.N, slices_ * ld_ * int64_t(sizeof(T)))) {
    up_size_ = kernels_.packed_size(call.H, std::min(kSliceClasses, call.V));
    up_ = allocate<T>(slices_ * up_size_);
    down_size_ = kernels_.packed_size(kSliceClasses, call.H);
    down_ = allocate<T>(call.dx != nullptr ? slices_ * down_size_ : 0);
    logits_ = allocate<T>((gradients_ ? slices_ : 1) * most_rows_ * ld_);
    max_ = allocate<T>(most_rows_ * slices_);
    sum_ = allocate<T>(most_rows_ * slices_);
    q_size_ = kOuterRows * round_up(call.H, kernels_.panel);
    q_ = allocate<T>(call.dw != nullptr ? most_threads * q_size_ : 0);
  }

  // The work of one thread.
  void run(int thread, int threads) {
    for (int64_t k = thread; k < slices_; k += threads) {
      const T* const w = c_.w + first(k) * c_.H;
      kernels_.pack(w, true, c_.H, width(k), 0, width(k), up_.get() + k * up_size_);
      if (c_.dx != nullptr) {
        kernels_.pack(w, false, width(k), c_.H, 0, c_.H, down_.get() + k * down_size_);
      }
    }
    barrier_.wait(threads);
    for (int64_t n0 = 0; n0 < c_.N; n0 += most_rows_) {
      const int64_t rows = std::min(most_rows_, c_.N - n0);
      const int64_t r0 = rows * thread / threads, r1 = rows * (thread + 1) / threads;
      for (int64_t r = r0; r < r1; r += kThreadRows) {
        const int64_t end = std::min(r1, r + kThreadRows);
        losses(n0, r, end);
        if (gradients_) {
          input_gradient(n0, r, end);
        }
      }
      if (c_.dw != nullptr || c_.db != nullptr) {
        barrier_.wait(threads);
        weight_gradients(n0, rows, thread, threads);
      }
      barrier_.wait(threads); // the next block overwrites the logits and is divided differently
    }
  }

private:
  static int64_t rows_of_block(int64_t N, int64_t row_bytes) {
    const int64_t rows = std::max(kLogitsBytes / row_bytes, kLeastRows);
    return std::min(N, rows < kOuterRows ? rows : rows / kOuterRows * kOuterRows);
  }
  // The classes of a slice are [first, first + width).
  int64_t first(int64_t slice) const { return slice * kSliceClasses; }
  int64_t width(int64_t slice) const { return std::min(kSliceClasses, c_.V - first(slice)); }
  // Row r of a slice. Without gradients nothing is kept, so all slices share their memory.
  T* at(int64_t slice, int64_t r) const {
    return logits_.get() + ((gradients_ ? slice : 0) * most_rows_ + r) * ld_;
  }

  // This function and the two after it work on the rows [r0, r1) of the block that begins at row
  // n0. This one computes the losses. It leaves exp(logits - maximum of the slice) in place of the
  // logits, and in `max_` the factors that make them probabilities.
  void losses(int64_t n0, int64_t r0, int64_t r1) {
    for (int64_t k = 0; k < slices_; ++k) {
      FusedProduct<T> product{};
      product.rows = r1 - r0, product.K = c_.H, product.N = product.col_end = width(k);
      product.a = c_.x + (n0 + r0) * c_.x_row, product.a_stride = c_.x_row,
      product.w = up_.get() + k * up_size_;
      product.act = Activation::kIdentity;
      product.sums_before = c_.b != nullptr ? c_.b + first(k) : nullptr;
      product.sums = at(k, r0), product.sums_stride = ld_, product.far = true;
      kernels_.fused_product(product);
      for (int64_t r = r0; r < r1; ++r) {
        const int64_t target = c_.target[n0 + r] - first(k);
        if (target >= 0 && target < width(k)) {
          c_.loss[n0 + r] = at(k, r)[target];
        }
        kernels_.exponentials(at(k, r), width(k), &max_[r * slices_ + k], &sum_[r * slices_ + k]);
      }
    }
    for (int64_t r = r0; r < r1; ++r) {
      T* const max = max_.get() + r * slices_;
      const T* const part = sum_.get() + r * slices_;
      const double most = *std::max_element(max, max + slices_);
      double sum = 0;
      for (int64_t k = 0; k < slices_; ++k) {
        sum += part[k] * std::exp(max[k] - most);
      }
      for (int64_t k = 0; k < slices_; ++k) {
        max[k] = static_cast<T>(std::exp(max[k] - most) / sum);
      }
      c_.loss[n0 + r] = static_cast<T>(std::log(sum) + (most - c_.loss[n0 + r]));
    }
  }

  // Turn the exponentials into dlogits and compute dx.
  void input_gradient(int64_t n0, int64_t r0, int64_t r1) {
    for (int64_t k = 0; k < slices_; ++k) {
      for (int64_t r = r0; r < r1; ++r) {
        const T dloss = c_.dloss[(n0 + r) * c_.dloss_step], factor = dloss * max_[r * slices_ + k];
        T* const row = at(k, r);
        for (int64_t v = 0; v < width(k); ++v) {
          row[v] *= factor;
        }
        const int64_t target = c_.target[n0 + r] - first(k);
        if (target >= 0 && target < width(k)) {
          row[target] -= dloss;
        }
      }
      if (c_.dx != nullptr) {
        FusedProduct<T> product{};
        product.rows = r1 - r0, product.K = width(k), product.N = product.col_end = c_.H;
        product.a = at(k, r0), product.a_stride = ld_, product.w = down_.get() + k * down_size_;
        product.act = Activation::kIdentity;
        product.out = c_.dx + (n0 + r0) * c_.H, product.out_stride = c_.H;
        product.addend = k > 0 ? product.out : nullptr, product.addend_stride = c_.H;
        kernels_.fused_product(product);
      }
    }
  }

  // Add the part of all `rows` of the block to dw and db of this thread's classes.
  void weight_gradients(int64_t n0, int64_t rows, int thread, int threads) {
    T* const q = q_.get() + thread * q_size_;
    const int64_t begin = c_.V * thread / threads, end = c_.V * (thread + 1) / threads;
    for (int64_t r0 = 0; r0 < rows; r0 += kOuterRows) {
      OuterProducts<T> o{};
      o.K = std::min(kOuterRows, rows - r0), o.N = c_.H;
      o.p_stride = ld_, o.q = q, o.add = n0 + r0 > 0;
      if (c_.dw != nullptr) {
        const T* right[kOuterRows];
        for (int64_t r = 0; r < o.K; ++r) {
          right[r] = c_.x + (n0 + r0 + r) * c_.x_row;
        }
        kernels_.pack_rows(right, o.K, c_.H, q);
      }
      for (int64_t v = begin; v < end; v += o.M) {
        const int64_t k = v / kSliceClasses;
        o.M = std::min(end, first(k) + width(k)) - v;
        o.p = at(k, r0) + v - first(k);
        if (c_.dw != nullptr) {
          o.out = c_.dw + v * c_.H;
          kernels_.outer_products(o);
        }
        if (c_.db != nullptr) {
          sum_columns(o, c_.db + v);
        }
      }
    }
  }

  const LinearCrossEntropy<T>& c_;
  const VectorKernels<T>& kernels_;
  int64_t slices_;              // the number of slices
  int64_t ld_;                  // elements from row to row of a slice
  bool gradients_;              // whether any gradient is wanted
  int64_t most_rows_;           // the rows of a block; the last block may have fewer
  int64_t up_size_, down_size_; // elements of up_ and down_ for one slice
  Buffer<T> up_, down_;         // W packed for the logits and for dx, slice by slice
  Buffer<T> logits_;            // [slices, rows of a block, ld_]
  Buffer<T> max_, sum_;         // for each row of a block and each slice: [rows, slices]
  Buffer<T> q_;                 // for each thread: kOuterRows packed rows of x
  int64_t q_size_;              // elements of q_ for one thread
  Barrier barrier_;
};

template <class T> double run(const LinearCrossEntropy<T>& call) {
  for (int64_t n = 0; n < call.N; ++n) {
    if (call.target[n] < 0 || call.target[n] >= call.V) {
      throw std::out_of_range("target " + std::to_string(call.target[n]) + " is not in [0, " +
                              std::to_string(call.V) +
                              "), the range of the classes that linear_weight has");
    }
  }
  const int wanted = threads_for(call.threads, double(call.N) * double(call.H) * double(call.V));
  BlockwiseLoss<T> work(call, wanted);
  parallel(wanted, [&](int thread, int threads) { work.run(thread, threads); });
  double sum = 0;
  for (int64_t n = 0; n < call.N; ++n) {
    sum += call.loss[n];
  }
  return sum;
}

} // namespace

double linear_cross_entropy(const LinearCrossEntropy<float>& call) { return run(call); }
double linear_cross_entropy(const LinearCrossEntropy<double>& call) { return run(call); }

} // namespace rnnfast
