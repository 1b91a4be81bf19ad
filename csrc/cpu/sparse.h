// A sparse matrix in the order in which vector/sparse-inl.h multiplies it by a vector, the state.
//
// A chunk is as many rows as a vector has lanes. A slot is one entry of each row of a chunk, or
// zero for the rows that have no entry left. There are two kinds of chunks:
//
// - far: a slot may have any columns. The elements of the state are loaded one by one. This is the
//   format SELL-C-sigma (Kreutzer et al. 2014).
// - near: the columns of a slot lie in two adjacent vectors of the state, from which one
//   instruction picks an element for each lane. Rows that have no entry there wait, so that there
//   are more slots. Where the matrix is dense enough, this is several times as fast.
//
// kStripChunks chunks form a strip. The rows of a strip may be sorted by their length, so that
// those of a chunk have nearly equal lengths and few slots are left unfilled. A strip is also the
// unit in which threads divide the work.
#pragma once

#include <cstdint>

#include "../api/reservoir.h"

namespace rnnfast {

constexpr int64_t kStripChunks = 8;

template <class T> struct Chunk {
  int64_t slots;
  const T* values;         // [slots, lanes]
  const uint32_t* columns; // far: [slots, lanes]. An unfilled place has the column H
  const uint32_t* vectors; // near: [slots], the first element of the two vectors; far: nullptr
  const uint8_t* picked;   // near: [slots, lanes], the place of an element in the two vectors
  const uint16_t* rows;    // [lanes], counted from the first row of the strip. nullptr: the chunk
                           // has consecutive rows
};

// One time step of one row of the batch, for the units of some strips.
template <class T> struct ReservoirStep {
  int64_t H;
  int64_t strip_begin, strip_end;
  const Chunk<T>* chunks; // of all strips
  Nonlinearity f;
  const T* before; // the state r before the step, and zeros up to one vector past the vector that
                   // has element H - 1
  const T* pre;    // [H rounded up to whole vectors]: W_ih x + b + addend
  const T* alpha;  // [H rounded up to whole vectors]
  T* s;            // [H rounded up to whole vectors], updated; nullptr: there is no state s
  T* after;        // [H], written: the state r after the step
  T* out;          // [H], written: a copy of it
};

// The vector code for one element type and one instruction set.
template <class T> struct ReservoirKernels {
  bool near; // whether there may be near chunks
  void (*step)(const ReservoirStep<T>&);
  // Apply the nonlinearity to n elements.
  void (*activate)(Nonlinearity, const T* v, int64_t n, T* out);
};

} // namespace rnnfast
