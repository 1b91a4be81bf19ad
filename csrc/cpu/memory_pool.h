// Blocks of memory that are used again. One fresh from the system costs a page fault for every 4
// KiB, as much time as the arithmetic of a short call.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include <sys/mman.h>

namespace rnnfast {

// Keeps the blocks that are given back, up to 64 MiB, the latest ones.
class MemoryPool {
public:
  MemoryPool() = default;
  MemoryPool(const MemoryPool&) = delete;
  ~MemoryPool() { shrink(0); }

  // The smallest block kept that is large enough and not wastefully large, or a new one; `size`
  // becomes the block's.
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
      } catch (const std::bad_alloc&) { // then it is not kept
      }
    }
    std::free(data);
  }

  static void* fresh(size_t& size) {
    size = (size + 63) / 64 * 64;
    const size_t huge = size / kHugePage * kHugePage; // no more, so that no page is half unused
    void* data = nullptr;
    if (posix_memalign(&data, huge > 0 ? kHugePage : 64, size) != 0) {
      throw std::bad_alloc();
    }
#if defined(MADV_HUGEPAGE)
    if (huge > 0) {
      madvise(data, huge, MADV_HUGEPAGE); // a hint: no harm if it is not taken
    }
#endif
    return data;
  }

  // Of the thread that calls.
  static MemoryPool& of_thread() {
    thread_local MemoryPool pool;
    return pool;
  }

private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kMost = 0; // so that blocks have exactly the size that was asked for
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

// One for all threads, any of which may give back what another took. Nobody waits for its lock, for
// a fork may leave it locked for ever.
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
  static constexpr size_t kLeast = size_t(1) << 15; // below it malloc asks nothing of the system
  std::mutex mutex_;
  MemoryPool pool_;
};

} // namespace rnnfast
