// The choice of a kernel and of how it is cut: every way that fits is given a time by a model of
// the machine, and the shortest is taken.
#pragma once

#include <vector>

#include "call.h"

namespace rnnfast::cuda {

// A kernel that keeps W_hh on the chip, compiled for sizes of its own.
struct Shape {
  Kernel kernel;
  bool matrix;    // by matrix instructions; otherwise by FMA
  bool together;  // for groups of several members; otherwise of one
  bool numbered;  // the words of the state carry the number of their step: one row a group
  int unit_step;  // units of a member are a multiple of this
  int most_units; // and no more than this
  int blocks;     // of k: 64 bytes each
  int (*threads)(int units);
  int (*rows)(int units);       // that a block of so many units finishes, at most
  size_t shared, group_bytes;   // of a block; of a group in device memory
  void (*function[2][2])(Call); // [backward][packed]
};

struct Plan {
  Kernel kernel;
  const Shape* shape; // nullptr: the step kernel
  Geometry geometry;
  int groups_at_once;                      // of a launch, of all directions
  size_t shared;                           // bytes of a block
  size_t weights, states, counters, zeros; // bytes in the workspace, in this order
  double clocks;                           // predicted, of a step

  size_t workspace() const { return weights + states + counters + zeros; }
};

// The kernels of one precision, seen from the host.
struct Kernels {
  const Shape* shapes;
  int count;
  void (*prepare)(const Call&, uint4* weights, int blocks, void* stream);
  void (*step)(Call);
};
const Kernels& kernels(Precision);

// All that fit the current device, the fastest first. `force` as for `choose`.
std::vector<Plan> plans(const Problem&, const Kernel* force);

// The fastest, which is found once for each shape and device.
Plan plan_of(const Problem&, const Kernel* force);

void run(const Problem&, const Plan&, const Direction*, void* workspace, void* stream);

} // namespace rnnfast::cuda
