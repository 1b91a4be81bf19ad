// What each kernels_*.cu instantiates for its precision: files of their own, so that they compile
// side by side.
#pragma once

#include "kernel.h"
#include "plan.h"

namespace rnnfast::cuda {

template <class E> struct KernelsOf {
  template <template <class> class Exchange>
  static void start(const char* name, const Plan& plan, const Call& call, void* stream) {
    const Geometry& g = plan.geometry;
    const device::Launch how{g.directions * g.groups * g.members,
                             plan.kernel == Kernel::kCluster ? g.members : 1,
                             plan.kernel == Kernel::kGrid, plan.shared, stream};
    const auto kernel = g.tiles == 1 ? &recur<E, Exchange, 1> : &recur<E, Exchange, 2>;
    device::allow(name, kernel, how);
    device::launch(name, kernel, kThreads, how, call);
  }

  static void prepare_(const Call& call, int blocks, void* stream) {
    device::launch("prepare", &prepare<E>, kThreads, {blocks, 1, false, 0, stream}, call, blocks);
  }

  static void recur_(const Plan& plan, const Call& call, void* stream) {
    switch (plan.kernel) {
    case Kernel::kCluster:
      if constexpr (kPersistent) {
        start<Cluster>("cluster kernel", plan, call, stream);
      }
      return;
    case Kernel::kGrid:
      if constexpr (kPersistent) {
        start<Grid>("grid kernel", plan, call, stream);
      }
      return;
    case Kernel::kStep: {
      const Geometry& g = plan.geometry;
      const device::Launch how{g.directions * g.groups * g.members, 1, false, plan.shared, stream};
      device::allow("step kernel", &recur<E, Launches, 2>, how);
      for (int i = call.first; i < call.last; ++i) {
        Call step = call;
        step.first = i, step.last = i + 1;
        device::launch("step kernel", &recur<E, Launches, 2>, kThreads, how, step);
      }
    }
    }
  }

  static int active_clusters(int tiles, int members) {
    if constexpr (kPersistent) {
      const device::Machine machine = device::machine();
      const device::Launch how{members, members, false, size_t(machine.shared), nullptr};
      const auto kernel = tiles == 1 ? &recur<E, Cluster, 1> : &recur<E, Cluster, 2>;
      return members == 1                ? machine.processors
             : members > machine.cluster ? 0
                                         : device::active_clusters(kernel, kThreads, how);
    }
    return 0;
  }

  static constexpr bool kPersistent = sizeof(typename E::Sum) == 4;
  static constexpr Kernels kTable{&active_clusters, &prepare_, &recur_};
};

} // namespace rnnfast::cuda
