// The choice of a kernel and of how it is cut: every way that fits is given a time by a model of
// the machine, and the shortest is taken.
#pragma once

#include <vector>

#include "geometry.h"
#include "recurrence.h"

namespace rnnfast::cuda {

struct Plan {
  Kernel kernel;
  Geometry geometry;
  size_t shared;                 // bytes of a block
  size_t weights, states, flags; // bytes in the workspace, in this order
  double clocks;                 // predicted, of a step

  size_t workspace() const { return weights + states + flags; }
};

// The kernels of one precision, seen from the host.
struct Call;
struct Kernels {
  // Clusters of `members` blocks that the current device can run at the same time, by the shared
  // memory that it has at most.
  int (*active_clusters)(int tiles, int members);
  void (*prepare)(const Call&, int blocks, void* stream);
  void (*recur)(const Plan&, const Call&, void* stream);
};
const Kernels& kernels(Precision);

// All that fit the current device, the fastest first. `force` as for `choose`.
std::vector<Plan> plans(const Problem&, const Kernel* force);

void run(const Problem&, const Plan&, const Direction*, void* workspace, void* stream);

} // namespace rnnfast::cuda
