// The choice of a kernel and of how the problem is cut. A model of the machine predicts the time of
// every way that fits, and the fastest is taken.
#pragma once

#include <vector>

#include "call.h"

namespace rnnfast::cuda {

// A kernel that keeps W_hh on the chip. Each is compiled for its own sizes.
struct Shape {
  Kernel kernel;
  bool matrix;    // multiplies by matrix instructions; otherwise by FMA
  bool together;  // a group has several members; otherwise one
  bool numbered;  // the words of the state carry the number of their step; a group has one row
  int unit_step;  // the units of a member are a multiple of this
  int most_units; // and at most this
  int blocks;     // of k, of 64 bytes
  int (*threads)(int units);
  int (*rows)(int units);       // the most that a block of `units` finishes
  size_t shared, group_bytes;   // bytes of a block; bytes of a group in device memory
  void (*function[4][2])(Call); // [mode][backward]
};

struct Plan {
  Kernel kernel;
  const Shape* shape; // nullptr: the step kernel
  Geometry geometry;
  int groups_at_once;                      // in a launch, of all directions together
  size_t shared;                           // bytes of a block
  size_t weights, states, counters, zeros; // bytes in the workspace, in this order
  double clocks;                           // the predicted time of a step

  size_t workspace() const { return weights + states + counters + zeros; }
};

// The kernels of one precision, as the host sees them.
struct Kernels {
  const Shape* shapes;
  int count;
  void (*prepare)(const Call&, uint4* weights, int blocks, void* stream);
  void (*step[2])(Call); // [whether the units are leaky]
};
const Kernels& kernels(Precision);

// Returns all plans that fit the current device, the fastest first. `force` is that of `choose`.
std::vector<Plan> plans(const Problem&, const Kernel* force);

// Returns the fastest plan, which is found once for each shape and device.
Plan plan_of(const Problem&, const Kernel* force);

void run(const Problem&, const Plan&, const Direction*, void* workspace, void* stream);

} // namespace rnnfast::cuda
