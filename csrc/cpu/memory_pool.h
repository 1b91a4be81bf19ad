// Memory that is used again. Memory that is fresh from the operating system costs a page fault for
// every 4 KiB, which takes as long as the arithmetic of a short call.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include <sys/mman.h>

#if defined(__has_feature) // Clang
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__
#endif
#endif

namespace rnnfast {

// Keeps blocks of memory that are given back, up to 64 MiB in all. When there is no room, the
// blocks that came back first are freed. Not safe for several threads at once.
class MemoryPool {
public:
  MemoryPool() = default;
  MemoryPool(const MemoryPool&) = delete;
  ~MemoryPool() { shrink(0); }

  // Return the smallest kept block of at least `size` and at most 2 * `size` bytes, or a new block,
  // and set `size` to the size of the block. Throws std::bad_alloc.
  void* take(size_t& size) {
    auto best = blocks_.rend();
    for (auto it = blocks_.rbegin(); it != blocks_.rend(); ++it) {
      if (it->size >= size && it->size <= 2 * size &&
          (best == blocks_.rend() || it->size < best->size)) {
        best = it;
      }
    }
    if (best == blocks_.rend()) {
      return fresh(size);
    }
    void* const data = best->data;
    size = best->size;
    kept_ -= size;
    blocks_.erase(best.base() - 1);
    return data;
  }

  void give(void* data, size_t size) noexcept {
    if (size <= kMost) {
      shrink(kMost - size);
      try {
        blocks_.push_back({data, size});
        kept_ += size;
        return;
      } catch (const std::bad_alloc&) {
        // There is no memory to note the block, so it is freed.
      }
    }
    std::free(data);
  }

  // Return a new block whose address is a multiple of 64 and round `size` up to a multiple of 64.
  // Throws std::bad_alloc.
  static void* fresh(size_t& size) {
    size = (size + 63) / 64 * 64;
    // Only whole huge pages, so that no page is half unused.
    const size_t huge = size / kHugePage * kHugePage;
    void* data = nullptr;
    if (posix_memalign(&data, huge > 0 ? kHugePage : 64, size) != 0) {
      throw std::bad_alloc();
    }
#if defined(MADV_HUGEPAGE)
    if (huge > 0) {
      madvise(data, huge, MADV_HUGEPAGE); // a hint, which the system may ignore
    }
#endif
    return data;
  }

  // The pool of the calling thread.
  static MemoryPool& of_thread() {
    thread_local MemoryPool pool;
    return pool;
  }

private:
#if defined(__SANITIZE_ADDRESS__)
  // Nothing is kept, so that every block has the size that was asked for and AddressSanitizer sees
  // an access past its end.
  static constexpr size_t kMost = 0;
#else
  static constexpr size_t kMost = size_t(64) << 20;
#endif
  static constexpr size_t kHugePage = size_t(2) << 20;
  struct Block {
    void* data;
    size_t size;
  };

  void shrink(size_t most) noexcept {
    auto first = blocks_.begin();
    for (; kept_ > most; ++first) {
      kept_ -= first->size;
      std::free(first->data);
    }
    blocks_.erase(blocks_.begin(), first);
  }

  std::vector<Block> blocks_; // in the order in which they came back
  size_t kept_ = 0;
};

// A pool for all threads of the process: a thread may give back a block that a different thread has
// taken. No thread waits for the lock, because a fork may leave it locked for ever in the child. If
// the lock is taken, the block comes from the system or returns to it.
class ProcessMemoryPool {
public:
  void* take(size_t& size) {
    if (size >= kLeast) {
      const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
      if (lock) {
        return pool_.take(size);
      }
    }
    return MemoryPool::fresh(size);
  }
  void give(void* data, size_t size) noexcept {
    if (size >= kLeast) {
      const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
      if (lock) {
        return pool_.give(data, size);
      }
    }
    std::free(data);
  }

private:
  // Smaller blocks are left to malloc, which does not ask the system for them.
  static constexpr size_t kLeast = size_t(1) << 15;
  std::mutex mutex_;
  MemoryPool pool_;
};

} // namespace rnnfast
