// Back-propagation through time. It goes backward through blocks of a few time steps:
//
// 1. The recurrence computes dpre for the steps of the block. The rows are divided over the threads
//    as in forward.cpp.
// 2. While dpre is in cache, the products over all rows of the block follow: dx, for which the
//    threads divide the rows, and dW_ih, dW_hh and db, for which they divide the rows of W.
//
// All layers of a stack with one direction go through a block before the next block begins. Each
// hands its dx to the layer below in a buffer that is in cache.
//
// Every sum runs over the rows in the same order for any number of threads, so the results do not
// depend on that number.
#include "backward_layer.h"
#include "parallel.h"
#include "work.h"

namespace rnnfast {
namespace {

// What goes through each block together: either all layers of a stack with one direction, which
// hand dx from one to the next and of which the highest comes first, or both directions of one
// layer. `at_once` of them go through a block at the same time, and the rest one after the other.
template <class S, class O> class BackwardStack {
public:
  BackwardStack(const Shape& shape, const std::vector<const Backward<S>*>& calls, bool directions,
                int at_once, int most_threads)
      : directions_(directions), at_once_(at_once), handed_ld_(row_stride<S>(shape.H)) {
    int64_t I = 0, rows = 0;
    for (const Backward<S>* call : calls) {
      const bool hands_on = !directions && call != calls.back();
      layers_.push_back(
          std::make_unique<BackwardLayer<S, O>>(shape, *call, most_threads, hands_on));
      I = std::max(I, call->dw_ih != nullptr ? call->I : 0);
      rows = std::max(rows, layers_.back()->blocks().most_rows());
    }
    for (int n = 0; n < at_once; ++n) {
      for (Buffer<O>& dpre : dpre_[n]) {
        dpre = allocate<O>(rows * layers_[0]->ld());
        layers_[0]->clear_padding(dpre.get(), rows);
      }
    }
    q_size_ = kOuterRows * round_up(std::max(I, shape.H), 64 / sizeof(O));
    q_ = allocate<O>(most_threads * q_size_);
    handed_ = allocate<S>(!directions && calls.size() > 1 ? rows * handed_ld_ : 0);
  }

  void run(int thread, int threads) {
    int64_t blocks = 0;
    for (const auto& layer : layers_) {
      layer->pack(thread, threads);
      blocks = std::max(blocks, layer->blocks().count());
    }
    all_.wait(threads);
    int turn = 0;
    for (int64_t k = 0; k < blocks; ++k) {
      for (size_t first = 0; first < layers_.size(); first += at_once_, turn = 1 - turn) {
        recur(k, first, turn, thread, threads);
        if (all_.wait_and_decide(threads)) { // one thread does all the rest
          if (thread > 0) {
            return;
          }
          threads = 1;
        }
        products(k, first, turn, thread, threads);
      }
    }
  }

private:
  // The recurrence of the layers [first, first + at_once_) through block k. A thread that has
  // finished its products begins the next recurrence while other threads still read dpre, so there
  // are two buffers for dpre, which take turns.
  void recur(int64_t k, size_t first, int turn, int thread, int threads) {
    const Team team(thread, threads, at_once_);
    const S* const dy = !directions_ && first > 0 ? handed_.get() : nullptr;
    for (int n = 0; n < at_once_; ++n) {
      if (threads < at_once_ || n == team.index) {
        layers_[first + n]->recur(k, dy, handed_ld_, dpre_[n][turn].get(), team.thread,
                                  team.threads);
      }
    }
  }

  // The products of the same layers over block k.
  void products(int64_t k, size_t first, int turn, int thread, int threads) {
    for (int n = 0; n < at_once_; ++n) {
      const BackwardLayer<S, O>& layer = *layers_[first + n];
      if (!layer.wants_dx()) {
        continue;
      }
      if (n > 0) {
        all_.wait(threads); // the other direction may have written the same rows of dx
      }
      S* const handed = !directions_ && first + 1 < layers_.size() ? handed_.get() : nullptr;
      const BackwardLayer<S, O>* const opposite =
          directions_ && layers_.size() == 2 ? layers_[1 - (first + n)].get() : nullptr;
      layer.input_gradient(k, dpre_[n][turn].get(), handed, handed_ld_, opposite, first + n > 0,
                           thread, threads);
    }
    if (!directions_ && layers_.size() > 1) {
      all_.wait(threads); // the dx that is handed on is complete
    }
    O* const q = q_.get() + thread * q_size_;
    for (int n = 0; n < at_once_; ++n) {
      layers_[first + n]->weight_gradients(k, dpre_[n][turn].get(), q, thread, threads);
    }
  }

  bool directions_;
  int at_once_;
  int64_t handed_ld_; // elements from row to row of the dx that is handed on
  std::vector<std::unique_ptr<BackwardLayer<S, O>>> layers_;
  Buffer<O> dpre_[2][2]; // for each layer at once, two that take turns: the rows of a block
  Buffer<O> q_;          // for each thread: a packed right factor, [kOuterRows, I or H]
  int64_t q_size_;       // elements of q_ for one thread
  Buffer<S> handed_;     // the dx that is handed on: [rows of a block, handed_ld_]
  Barrier all_;
};

// Return the number of multiply-adds of a call.
template <class S> double multiply_adds(const Shape& shape, const Backward<S>& call, bool dx) {
  const Schedule schedule(shape, call.reverse);
  const int64_t I = (dx ? call.I : 0) + (call.dw_ih != nullptr ? call.I : 0);
  const int64_t H = shape.H + (call.dw_hh != nullptr ? shape.H : 0);
  return double(schedule.total()) * gates_in(call) * shape.H * double(H + I);
}

template <class S, class O = S>
void backward_any(const Shape& shape, int64_t layers, int64_t directions,
                  const Backward<S>* stack) {
  double work = 0;
  for (int64_t n = 0; n < layers * directions; ++n) {
    if (stack[n].tokens.data != nullptr) {
      check_tokens(Schedule(shape, stack[n].reverse), stack[n].tokens, stack[n].I);
    }
    work += multiply_adds(shape, stack[n], stack[n].dx.data != nullptr || n >= directions);
  }
  const int at_once =
      directions > 1
          ? static_cast<int>(rnnfast::at_once<S>(shape, gates_in(stack[0]), layers, directions))
          : 1;
  const int wanted = threads_for(shape.threads, work * at_once / double(layers * directions));
  const auto run = [&](const std::vector<const Backward<S>*>& calls) {
    BackwardStack<S, O> stack_work(shape, calls, directions > 1, at_once, wanted);
    parallel(wanted, [&](int thread, int threads) { stack_work.run(thread, threads); });
  };
  if (directions == 1) {
    std::vector<const Backward<S>*> calls;
    for (int64_t layer = layers - 1; layer >= 0; --layer) {
      calls.push_back(stack + layer);
    }
    run(calls);
  } else {
    for (int64_t layer = layers - 1; layer >= 0; --layer) {
      run({stack + 2 * layer, stack + 2 * layer + 1});
    }
  }
}

} // namespace

void backward(const Shape& shape, int64_t layers, int64_t directions,
              const Backward<float>* stack) {
  backward_any(shape, layers, directions, stack);
}
void backward(const Shape& shape, int64_t layers, int64_t directions,
              const Backward<double>* stack) {
  backward_any(shape, layers, directions, stack);
}
void backward(const Shape& shape, int64_t layers, int64_t directions,
              const Backward<bfloat16>* stack) {
  if (current_isa().bf16_pairs != nullptr) {
    backward_any(shape, layers, directions, stack);
  } else {
    backward_any<bfloat16, float>(shape, layers, directions, stack);
  }
}
void backward(const Shape& shape, int64_t layers, int64_t directions,
              const Backward<float16>* stack) {
  backward_any<float16, float>(shape, layers, directions, stack);
}

} // namespace rnnfast
