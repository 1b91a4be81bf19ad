// The recurrence over time and its threads; the arithmetic of a step is in tile-inl.h.
//
// Work is split over `groups` of rows, each computed by `members` threads that split the hidden
// columns. Rows are independent, so groups never meet; members exchange h_t through a barrier a
// step and exist only where there are too few rows to go round.
//
// The state between steps lives in two compact buffers that alternate (`state`), not in the
// caller's tensor: its rows are padded, so that they fall into different cache sets whatever the
// caller's strides, and hold h0 before the first step of a row.
#include "../rnn.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "isa.h"
#include "parallel.h"

namespace rnnfast {
namespace {

// The input projection runs over this many rows at a time, a few steps ahead of the recurrence:
// long enough to use each panel of W_ih well, short enough to stay in cache until it is read.
constexpr int64_t kBlockRows = 64;
// Under this many multiply-adds a call is done before a second thread has woken up.
constexpr double kThreadWork = 1e5;
// With fewer rows than this for each thread, threads share rows and split columns...
constexpr int64_t kGroupRows = 4;
// ...if a step has at least this many multiply-adds for each, to pay for the barrier.
constexpr double kMemberWork = 1 << 14;

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

template <class T> struct Free {
  void operator()(T* p) const { std::free(p); }
};
template <class T> using Buffer = std::unique_ptr<T[], Free<T>>;

template <class T> Buffer<T> allocate(int64_t size) {
  void* p = std::aligned_alloc(64, std::max<int64_t>(64, round_up(size * sizeof(T), 64)));
  if (p == nullptr) {
    throw std::bad_alloc();
  }
  return Buffer<T>(static_cast<T*>(p));
}

// Elements from a row of a compact buffer to the next: whole vectors plus one cache line, so that
// powers of two do not put every row into the same cache set.
template <class T> int64_t row_stride(int64_t n) {
  return round_up(n, 64 / sizeof(T)) + 64 / sizeof(T);
}

// Which rows are there at each step, in the order of computation.
class Steps {
public:
  Steps(const Shape& shape, bool from_end) : shape_(shape), from_end_(from_end) {
    if (shape.batch_sizes != nullptr) {
      starts_.resize(shape.T);
      int64_t sum = 0;
      for (int64_t t = 0; t < shape.T; ++t) {
        starts_[t] = sum;
        sum += shape.batch_sizes[t];
      }
      total_ = sum;
    } else {
      total_ = shape.T * shape.B;
    }
  }

  int64_t time(int64_t i) const { return from_end_ ? shape_.T - 1 - i : i; }

  // Rows at the i-th computed step; 0 before the first and after the last.
  int64_t rows(int64_t i) const {
    if (i < 0 || i >= shape_.T) {
      return 0;
    }
    return shape_.batch_sizes != nullptr ? shape_.batch_sizes[time(i)] : shape_.B;
  }

  template <class P> P* at(const Sequence<P>& s, int64_t i, int64_t row) const {
    const int64_t t = time(i);
    return s.data +
           (shape_.batch_sizes != nullptr ? (starts_[t] + row) * s.row : t * s.step + row * s.row);
  }

  int64_t total() const { return total_; }

  // Where to cut the rows so that `groups` get nearly the same number of row-steps.
  int64_t cut(int64_t group, int64_t groups) const {
    if (shape_.batch_sizes == nullptr) {
      return shape_.B * group / groups;
    }
    // Rows are in order of falling length; row r has as many steps as batch_sizes are over r.
    const int64_t goal = total_ * group / groups;
    int64_t sum = 0, row = 0;
    for (int64_t t = shape_.T; row < shape_.B && sum < goal; ++row) {
      while (t > 0 && shape_.batch_sizes[t - 1] <= row) {
        --t;
      }
      sum += t;
    }
    return group == groups ? shape_.B : row;
  }

private:
  Shape shape_;
  bool from_end_;
  std::vector<int64_t> starts_;
  int64_t total_;
};

// How many threads to ask for, given the multiply-adds of the whole call.
int threads_for(const Shape& shape, double work) {
  return work < 2 * kThreadWork
             ? 1
             : static_cast<int>(std::min<double>(std::max(shape.threads, 1), work / kThreadWork));
}

// One thread's share: rows [r0, r1) and hidden columns [c0, c1), both perhaps empty.
struct Share {
  int group, member, members;
  int64_t r0, r1, c0, c1;

  Share(const Steps& steps, int64_t B, int64_t H, int64_t panel, int thread, int threads) {
    const int64_t panels = (H + panel - 1) / panel;
    const int64_t by_work = static_cast<int64_t>(double(B) * H * H / kMemberWork);
    const int64_t shared = std::clamp<int64_t>(B / kGroupRows, 1, threads);
    members = static_cast<int>(
        std::clamp<int64_t>(std::min(threads / shared, by_work / shared), 1, panels));
    const int64_t groups = members > 1 ? shared : std::min<int64_t>(threads, B);
    group = thread / members;
    member = thread % members;
    if (group >= groups) {
      r0 = r1 = c0 = c1 = 0;
      members = 1;
      return;
    }
    r0 = steps.cut(group, groups);
    r1 = steps.cut(group + 1, groups);
    c0 = std::min(H, panels * member / members * panel);
    c1 = std::min(H, panels * (member + 1) / members * panel);
  }
};

// Each thread's part of packing a K x H matrix.
template <class T>
void pack_part(const Kernels<T>& kernels, const T* w, bool transpose, int64_t K, int64_t H,
               int thread, int threads, T* packed) {
  const int64_t panels = (H + kernels.panel - 1) / kernels.panel;
  const int64_t c0 = std::min(H, panels * thread / threads * kernels.panel);
  const int64_t c1 = std::min(H, panels * (thread + 1) / threads * kernels.panel);
  if (c0 < c1) {
    kernels.pack(w, transpose, K, H, c0, c1, packed);
  }
}

// Where a thread's own block of rows begins in a buffer of block_rows() rows. Members of a group
// hold its rows once each, but then there are fewer than 2 * kGroupRows of them for each thread.
int64_t block_offset(const Share& share, int thread, int64_t B) {
  return thread * kBlockRows + share.member * B + share.r0;
}
int64_t block_rows(int threads, int64_t B) { return threads * (kBlockRows + 2 * kGroupRows) + B; }

template <class T> void forward_any(const Forward<T>& a) {
  const Kernels<T>& kernels = rnnfast::kernels<T>();
  const int64_t B = a.shape.B, I = a.I, H = a.H;
  const Steps steps(a.shape, a.shape.reverse);
  const int wanted = threads_for(a.shape, double(steps.total()) * H * (H + I));

  const int64_t width = round_up(H, kernels.vector);
  const int64_t x_ld = row_stride<T>(I), ld = row_stride<T>(H);
  const Buffer<T> w_ih = allocate<T>(I * width), w_hh = allocate<T>(H * width);
  const Buffer<T> bias = allocate<T>(width);
  const Buffer<T> state[2] = {allocate<T>(B * ld), allocate<T>(B * ld)};
  const Buffer<T> x_blocks = allocate<T>(block_rows(wanted, B) * x_ld);
  const Buffer<T> pre_blocks = allocate<T>(block_rows(wanted, B) * ld);
  const std::unique_ptr<Barrier[]> barriers(new Barrier[wanted + 1]);

  for (int64_t c = 0; c < width; ++c) {
    bias[c] = (a.b_ih != nullptr && c < H ? a.b_ih[c] : T(0)) +
              (a.b_hh != nullptr && c < H ? a.b_hh[c] : T(0));
  }

  parallel(wanted, [&](int thread, int threads) {
    pack_part(kernels, a.w_ih, true, I, H, thread, threads, w_ih.get());
    pack_part(kernels, a.w_hh, true, H, H, thread, threads, w_hh.get());
    for (int64_t r = thread; r < B; r += threads) {
      for (const Buffer<T>& s : state) {
        if (a.h0 != nullptr) {
          std::copy_n(a.h0 + r * H, H, s.get() + r * ld);
        } else {
          std::fill_n(s.get() + r * ld, H, T(0));
        }
      }
    }
    barriers[0].wait(threads);

    const Share share(steps, B, H, kernels.panel, thread, threads);
    if (share.r0 == share.r1 || share.c0 == share.c1) {
      return;
    }
    const int64_t offset = block_offset(share, thread, B);
    T* const x = x_blocks.get() + offset * x_ld;
    T* const pre = pre_blocks.get() + offset * ld;
    const auto active = [&](int64_t i) { // of this share's rows, at step i
      return std::clamp<int64_t>(steps.rows(i) - share.r0, 0, share.r1 - share.r0);
    };

    const int64_t block = std::max<int64_t>(1, kBlockRows / (share.r1 - share.r0));
    for (int64_t i0 = 0; i0 < a.shape.T; i0 += block) {
      const int64_t i1 = std::min(a.shape.T, i0 + block);
      int64_t n = 0;
      for (int64_t i = i0; i < i1; ++i) {
        for (int64_t r = share.r0; r < share.r0 + active(i); ++r) {
          std::copy_n(steps.at(a.x, i, r), I, x + n++ * x_ld);
        }
      }
      Step<T> project{};
      project.rows = n, project.K = I, project.N = H;
      project.col_begin = share.c0, project.col_end = share.c1;
      project.a = x, project.a_stride = x_ld, project.w = w_ih.get();
      project.act = Activation::kIdentity;
      project.addend = bias.get(), project.addend_stride = 0;
      project.padded = pre, project.padded_stride = ld;
      kernels.step(project);

      n = 0;
      for (int64_t i = i0; i < i1; ++i) {
        if (active(i) == 0) {
          continue;
        }
        Step<T> s{};
        s.rows = active(i), s.N = H;
        s.K = i == 0 && a.h0 == nullptr ? 0 : H;
        s.col_begin = share.c0, s.col_end = share.c1;
        s.a = state[i % 2].get() + share.r0 * ld, s.a_stride = ld, s.w = w_hh.get();
        s.act = a.shape.relu ? Activation::kRelu : Activation::kTanh;
        s.addend = pre + n * ld, s.addend_stride = ld;
        s.padded = state[(i + 1) % 2].get() + share.r0 * ld, s.padded_stride = ld;
        s.out = steps.at(a.h, i, share.r0), s.out_stride = a.h.row;
        kernels.step(s);
        barriers[1 + share.group].wait(share.members);
        n += active(i);
      }
    }
  });
}

template <class T> void backward_any(const Backward<T>& a) {
  const Kernels<T>& kernels = rnnfast::kernels<T>();
  const int64_t B = a.shape.B, H = a.H;
  const Steps steps(a.shape, !a.shape.reverse);
  const int wanted = threads_for(a.shape, double(steps.total()) * H * H);

  const int64_t ld = row_stride<T>(H);
  const Buffer<T> w_hh = allocate<T>(H * round_up(H, kernels.vector));
  const Buffer<T> state[2] = {allocate<T>(B * ld), allocate<T>(B * ld)};
  const std::unique_ptr<Barrier[]> barriers(new Barrier[wanted + 1]);

  parallel(wanted, [&](int thread, int threads) {
    pack_part(kernels, a.w_hh, false, H, H, thread, threads, w_hh.get());
    barriers[0].wait(threads);

    const Share share(steps, B, H, kernels.panel, thread, threads);
    if (share.r0 == share.r1 || share.c0 == share.c1) {
      return;
    }
    const auto active = [&](int64_t i) {
      return std::clamp<int64_t>(steps.rows(i) - share.r0, 0, share.r1 - share.r0);
    };
    // Rows [begin, end) of the share at step i. Rows at their first step have no product yet, and
    // dh_n in its place.
    const auto run = [&](int64_t i, int64_t begin, int64_t end, bool first) {
      if (begin == end) {
        return;
      }
      const int64_t r = share.r0 + begin;
      Step<T> s{};
      s.rows = end - begin, s.N = H;
      s.K = first ? 0 : H;
      s.col_begin = share.c0, s.col_end = share.c1;
      s.a = state[i % 2].get() + r * ld, s.a_stride = ld, s.w = w_hh.get();
      s.act = a.shape.relu ? Activation::kReluGrad : Activation::kTanhGrad;
      if (a.dy.data != nullptr) {
        s.addend = steps.at(a.dy, i, r), s.addend_stride = a.dy.row;
      }
      if (first && a.dh_n != nullptr) {
        s.addend2 = a.dh_n + r * H, s.addend2_stride = H;
      }
      s.h = steps.at(a.h, i, r), s.h_stride = a.h.row;
      s.padded = state[(i + 1) % 2].get() + r * ld, s.padded_stride = ld;
      s.out = steps.at(a.dpre, i, r), s.out_stride = a.dpre.row;
      kernels.step(s);
    };

    for (int64_t i = 0; i < a.shape.T; ++i) {
      if (active(i) == 0) {
        continue;
      }
      const int64_t continuing = std::min(active(i - 1), active(i));
      run(i, 0, continuing, false);
      run(i, continuing, active(i), true);
      barriers[1 + share.group].wait(share.members);
      if (a.dh0 != nullptr && active(i + 1) < active(i)) { // rows at their last step
        const int64_t r = share.r0 + active(i + 1);
        Step<T> s{};
        s.rows = active(i) - active(i + 1), s.K = H, s.N = H;
        s.col_begin = share.c0, s.col_end = share.c1;
        s.a = state[(i + 1) % 2].get() + r * ld, s.a_stride = ld, s.w = w_hh.get();
        s.act = Activation::kIdentity;
        s.out = a.dh0 + r * H, s.out_stride = H;
        kernels.step(s);
      }
    }
  });
}

} // namespace

void forward(const Forward<float>& a) { forward_any(a); }
void forward(const Forward<double>& a) { forward_any(a); }
void backward(const Backward<float>& a) { backward_any(a); }
void backward(const Backward<double>& a) { backward_any(a); }

} // namespace rnnfast
