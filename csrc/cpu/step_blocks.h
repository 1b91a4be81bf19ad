// The blocks of steps that back-propagation through time goes through; see backward.cpp.
#pragma once

#include <algorithm>
#include <vector>

#include "isa.h"
#include "schedule.h"

namespace rnnfast {

// A block has about this many bytes of dpre. So dpre stays in cache, and the work of a block is
// long compared with the barriers at its end.
constexpr int64_t kDpreBytes = 1 << 18;

// The steps of one direction in the order of computation, divided into blocks. A block may have at
// least kOuterRows rows, which OuterProducts adds up at a time: every addition costs a pass over
// the gradients of the weights.
class StepBlocks {
public:
  StepBlocks(const Schedule& schedule, int64_t row_bytes) : of_time_(schedule.count()) {
    const int64_t most = std::max(kOuterRows, kDpreBytes / row_bytes);
    int64_t rows = 0;
    for (int64_t i = 0; i < schedule.count(); ++i) {
      rows += schedule.rows_at(i);
      if (i == 0 || rows > most) {
        first_.push_back(i);
        rows = schedule.rows_at(i);
      }
      most_rows_ = std::max(most_rows_, rows);
      of_time_[schedule.time(i)] = static_cast<int64_t>(first_.size()) - 1;
    }
    first_.push_back(schedule.count());
  }

  // The number of blocks.
  int64_t count() const { return static_cast<int64_t>(first_.size()) - 1; }
  // Block k holds the computed steps [first(k), first(k + 1)). For k >= count() there are none.
  int64_t first(int64_t k) const { return first_[std::min(k, count())]; }
  // The block of time step t.
  int64_t of_time(int64_t t) const { return of_time_[t]; }
  // The most rows that a block has.
  int64_t most_rows() const { return most_rows_; }

private:
  std::vector<int64_t> first_, of_time_;
  int64_t most_rows_ = 0;
};

} // namespace rnnfast
