// Packs a sparse matrix into the chunks and strips that sparse.h describes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "sparse.h"
#include "work.h"

namespace rnnfast {

// The time of the parts of a step in clock cycles. They were measured on a Zen 4 with 1,000 units.
constexpr double kFarPlace = 1.15; // a place of a slot of a far chunk
constexpr double kNearSlot = 4;
constexpr double kUnit = 2; // the nonlinearity and the leak of a unit
// Sorting the rows of a strip costs each chunk this many slots, because its sums are not stored as
// a whole vector.
constexpr int64_t kSortingSlots = 1;

template <class T> class SparseMatrix {
public:
  using Weights = typename Reservoir<T>::Weights;

  // `lanes` is the number of rows of a chunk. Chunks may be near if `near`. Throws what the
  // constructor of Reservoir throws.
  SparseMatrix(const Weights& w, int64_t lanes, bool near)
      : w_(w), lanes_(lanes), strip_rows_(kStripChunks * lanes) {
    check();
    std::vector<Strip> strips;
    int64_t far_slots = 0, near_slots = 0, sorted_strips = 0;
    for (int64_t begin = 0; begin < w.H; begin += strip_rows_) {
      const Strip strip = plan(begin, near);
      (strip.near ? near_slots : far_slots) += strip.slots;
      sorted_strips += strip.sorted;
      cycles_before_.push_back(cycles_before_.back() + cycles_of(strip));
      strips.push_back(strip);
    }
    values_ = allocate<T>((far_slots + near_slots) * lanes);
    columns_ = allocate<uint32_t>(far_slots * lanes);
    vectors_ = allocate<uint32_t>(near_slots);
    picked_ = allocate<uint8_t>(near_slots * lanes);
    rows_ = allocate<uint16_t>(sorted_strips * strip_rows_);
    fill(strips);
    w_ = {}; // the caller's pointers are not valid for longer
  }

  const Chunk<T>* chunks() const { return chunks_.data(); }
  int64_t strips() const { return int64_t(cycles_before_.size()) - 1; }
  int64_t strip_rows() const { return strip_rows_; }
  // The cycles that a step takes for one row of the batch.
  double cycles() const { return cycles_before_.back(); }
  // The first strip of part `part` when the strips are divided into `parts` parts that take nearly
  // the same time.
  int64_t cut(int part, int parts) const {
    if (part == parts) {
      return strips();
    }
    const double goal = cycles() * part / parts;
    return std::lower_bound(cycles_before_.begin(), cycles_before_.end(), goal) -
           cycles_before_.begin();
  }

private:
  using Rows = std::vector<int64_t>;
  struct Strip {
    Rows rows; // in the order of the lanes
    bool near, sorted;
    int64_t slots;
  };

  void check() const {
    for (int64_t row = 0; row < w_.H; ++row) {
      if ((row == 0 && w_.starts[0] != 0) || w_.starts[row + 1] < w_.starts[row] ||
          (row + 1 == w_.H && w_.starts[w_.H] != w_.entries)) {
        throw std::invalid_argument(
            "crow_indices must rise from 0 to the number of values, " + std::to_string(w_.entries) +
            ", got " + std::to_string(w_.starts[row]) + " and " +
            std::to_string(w_.starts[row + 1]) + " for row " + std::to_string(row));
      }
    }
    for (int64_t i = 0; i < w_.entries; ++i) {
      if (w_.columns[i] < 0 || w_.columns[i] >= w_.H) {
        throw std::out_of_range("col_indices must be in [0, " + std::to_string(w_.H) + "), got " +
                                std::to_string(w_.columns[i]));
      }
    }
  }

  int64_t length(int64_t row) const { return w_.starts[row + 1] - w_.starts[row]; }

  double cycles_of(const Strip& strip) const {
    const double slot = strip.near ? kNearSlot : kFarPlace * double(lanes_);
    return double(strip.slots) * slot + double(strip.rows.size()) * kUnit;
  }

  // Call chunk(begin, end) for each chunk of `rows`.
  template <class Run> void for_chunks(const Rows& rows, const Run& chunk) const {
    for (size_t begin = 0; begin < rows.size(); begin += lanes_) {
      chunk(rows.begin() + begin, rows.begin() + std::min(rows.size(), begin + lanes_));
    }
  }

  int64_t far_slots(Rows::const_iterator begin, Rows::const_iterator end) const {
    int64_t longest = 0;
    for (; begin < end; ++begin) {
      longest = std::max(longest, length(*begin));
    }
    return longest;
  }

  // The near slots of a chunk: the first element of the two vectors of each slot, and which entry
  // each lane has in it, -1 for none.
  struct NearSlots {
    std::vector<int64_t> first, entries;
  };

  // The two vectors of a slot begin with the one that has the smallest next column of all rows.
  NearSlots near_slots(Rows::const_iterator begin, Rows::const_iterator end) const {
    NearSlots slots;
    std::vector<int64_t> next;
    for (auto row = begin; row < end; ++row) {
      next.push_back(w_.starts[*row]);
    }
    const auto column = [&](size_t lane) {
      return next[lane] < w_.starts[begin[lane] + 1] ? w_.columns[next[lane]] : w_.H;
    };
    for (;;) {
      int64_t lowest = w_.H;
      for (size_t lane = 0; lane < next.size(); ++lane) {
        lowest = std::min(lowest, column(lane));
      }
      if (lowest == w_.H) {
        return slots;
      }
      const int64_t first = lowest / lanes_ * lanes_;
      slots.first.push_back(first);
      for (size_t lane = 0; lane < size_t(lanes_); ++lane) {
        const bool taken = lane < next.size() && column(lane) < std::min(w_.H, first + 2 * lanes_);
        slots.entries.push_back(taken ? next[lane]++ : -1);
      }
    }
  }

  // Choose the kind and the order of the rows from `begin` on that takes the least time.
  Strip plan(int64_t begin, bool near) const {
    Strip far{Rows(std::min(strip_rows_, w_.H - begin)), false, false, 0};
    std::iota(far.rows.begin(), far.rows.end(), begin);
    const auto count_far = [&](Strip& strip) {
      for_chunks(strip.rows, [&](auto b, auto e) { strip.slots += far_slots(b, e); });
    };
    count_far(far);
    Strip sorted{far.rows, false, true, 0};
    std::stable_sort(sorted.rows.begin(), sorted.rows.end(),
                     [&](int64_t a, int64_t b) { return length(a) > length(b); });
    count_far(sorted);
    Strip best = sorted.slots + kSortingSlots * kStripChunks < far.slots ? sorted : far;
    if (near) {
      Strip close{far.rows, true, false, 0};
      for_chunks(far.rows, [&](auto b, auto e) { close.slots += near_slots(b, e).first.size(); });
      best = cycles_of(close) < cycles_of(best) ? close : best;
    }
    return best;
  }

  void fill(const std::vector<Strip>& strips) {
    T* value = values_.get();
    uint32_t *column = columns_.get(), *vector = vectors_.get();
    uint8_t* picked = picked_.get();
    uint16_t* row = rows_.get();
    for (const Strip& strip : strips) {
      const int64_t first_row = *std::min_element(strip.rows.begin(), strip.rows.end());
      for_chunks(strip.rows, [&](auto begin, auto end) {
        Chunk<T> chunk{0, value, nullptr, nullptr, nullptr, nullptr};
        if (strip.near) {
          chunk.vectors = vector, chunk.picked = picked;
          const NearSlots slots = near_slots(begin, end);
          chunk.slots = slots.first.size();
          vector = std::copy(slots.first.begin(), slots.first.end(), vector);
          for (size_t i = 0; i < slots.entries.size(); ++i) {
            const int64_t entry = slots.entries[i];
            *value++ = entry < 0 ? T(0) : w_.values[entry];
            *picked++ = entry < 0 ? 0 : uint8_t(w_.columns[entry] - slots.first[i / lanes_]);
          }
        } else {
          chunk.columns = column;
          chunk.slots = far_slots(begin, end);
          for (int64_t i = 0; i < chunk.slots * lanes_; ++i) {
            const auto lane = begin + i % lanes_;
            const bool taken = lane < end && i / lanes_ < length(*lane);
            const int64_t entry = taken ? w_.starts[*lane] + i / lanes_ : 0;
            *value++ = taken ? w_.values[entry] : T(0);
            *column++ = uint32_t(taken ? w_.columns[entry] : w_.H);
          }
        }
        if (strip.sorted) {
          chunk.rows = row + (begin - strip.rows.begin());
        }
        chunks_.push_back(chunk);
      });
      if (strip.sorted) {
        // The lanes after the last row write sums that nothing reads, each to a place of its own.
        std::iota(row, row + strip_rows_, uint16_t(0));
        std::transform(strip.rows.begin(), strip.rows.end(), row,
                       [&](int64_t r) { return uint16_t(r - first_row); });
        row += strip_rows_;
      }
    }
  }

  Weights w_;
  int64_t lanes_, strip_rows_;
  std::vector<double> cycles_before_{0.0}; // for each strip and the end
  std::vector<Chunk<T>> chunks_;
  Buffer<T> values_;
  Buffer<uint32_t> columns_, vectors_;
  Buffer<uint8_t> picked_;
  Buffer<uint16_t> rows_;
};

} // namespace rnnfast
