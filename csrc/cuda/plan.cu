#include "plan.h"

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <map>
#include <mutex>

#include "kernel.h"

namespace rnnfast::cuda {

extern const Kernels kFloat32, kTf32, kBfloat16, kFloat16, kFloat64;

const Kernels& kernels(Precision precision) {
  switch (precision) {
  case Precision::kFloat32:
    return kFloat32;
  case Precision::kTf32:
    return kTf32;
  case Precision::kBfloat16:
    return kBfloat16;
  case Precision::kFloat16:
    return kFloat16;
  case Precision::kFloat64:
    break;
  }
  return kFloat64;
}

namespace {

// The machine in clocks of a multiprocessor, for the model: Hopper. Latencies as published for
// DSMEM and L2; barriers, launches and the rates of remote stores are guesses to be measured.
constexpr double kClock = 1.755e3;       // a microsecond
constexpr double kBlockBarrier = 40;     // with the wait for the slowest warp
constexpr double kClusterBarrier = 240;  // and for what was stored remotely
constexpr double kL2 = 263;              // a trip
constexpr double kLaunch = 2.2 * kClock; // from one launch of a stream to the next
constexpr double kElementwise = 120;     // sum, function, store: the chain of one pair
constexpr double kMatrixLatency = 33;    // a matrix instruction that waits for the one before
constexpr double kMatrixRate = 2;        // clocks a matrix instruction, of the multiprocessor
constexpr double kFmaRate = 128;         // a clock
constexpr double kSharedRate = 128;      // bytes a clock
constexpr double kRemoteRate = 14;       // bytes a clock that a block receives
constexpr double kL2Rate = 64;           // bytes a clock that a block receives
constexpr double kL2Total = 3100;        // bytes a clock of the whole machine

// Rows at a time: more wait less, fewer need less shared memory.
constexpr int kChunks[] = {32, 16, 8};

struct Sizes {
  int stored, sum, columns;
};
Sizes sizes(Precision precision) {
  switch (precision) {
  case Precision::kFloat32:
    return {4, 4, 1};
  case Precision::kTf32:
    return {4, 4, 8};
  case Precision::kBfloat16:
  case Precision::kFloat16:
    return {2, 4, 8};
  case Precision::kFloat64:
    break;
  }
  return {8, 8, 1};
}

int ceil_div(int64_t a, int64_t b) { return int((a + b - 1) / b); }

// A group's members and their warps.
Geometry members(const Problem& p, int tiles, int warps_m) {
  Geometry g{};
  g.H = int(p.H), g.directions = p.directions, g.tiles = tiles, g.warps_m = warps_m;
  g.units = warps_m * tiles * 16;
  g.members = ceil_div(p.H, g.units);
  g.blocks = ceil_div(p.H * sizes(p.precision).stored, 64);
  g.warp_blocks = ceil_div(g.blocks, kWarps / warps_m);
  g.warps_k = ceil_div(g.blocks, g.warp_blocks);
  return g;
}

// Deals the batch out to at most `groups` groups, at most `chunk` rows at a time.
void deal(Geometry& g, const Problem& p, int64_t groups, int chunk) {
  const int columns = sizes(p.precision).columns;
  g.rows = ceil_div(p.B, std::clamp<int64_t>(groups, 1, p.B));
  g.groups = ceil_div(p.B, g.rows);
  const int finished = kPairs * (kThreads / (g.units / 2));
  g.chunk = std::min(finished, chunk);
  // A chunk of matrix instructions is 8, 16 or 32 rows, and then not padded itself.
  g.chunk = columns == 1 ? g.chunk : g.chunk < 16 ? 8 : g.chunk < 32 ? 16 : 32;
  g.chunk = std::min(g.chunk, padded(g.rows, columns));
  g.padded_rows = g.rows / g.chunk * g.chunk + padded(g.rows % g.chunk, columns);
}

size_t shared_bytes(const Geometry& g, const Problem& p, Kernel kernel) {
  const Sizes s = sizes(p.precision);
  const size_t sums =
      (size_t(2) * g.warps_k * padded(g.chunk, s.columns) * g.sum_stride() + g.units) * s.sum;
  const int parts = std::max(0, g.warp_blocks * g.tiles - kRegisterParts);
  const size_t weights = size_t(g.warps_m) * g.warps_k * parts * kPartBytes;
  const size_t row = size_t(g.shared_stride()) * 16;
  switch (kernel) {
  case Kernel::kCluster:
    return sums + weights + 2 * g.padded_rows * row;
  case Kernel::kGrid:
    return sums + weights + 2 * padded(g.chunk, s.columns) * row;
  case Kernel::kStep:
    break;
  }
  return sums;
}

// The prediction. What the README's table of a step holds is this function.
double clocks(const Geometry& g, const Problem& p, Kernel kernel) {
  const Sizes s = sizes(p.precision);
  const int chunks = ceil_div(g.rows, g.chunk), warps = g.warps_m * g.warps_k;
  const double parts = double(g.warp_blocks) * g.tiles; // of a warp
  const double held = kernel == Kernel::kStep ? 0 : std::min<double>(parts, kRegisterParts);
  const double state = double(g.rows) * g.blocks * 64; // bytes of a group
  const int blocks_of_grid = g.directions * g.groups * g.members;

  double multiply = 0, passes = 0; // passes over the weights
  if (s.columns == 8) {
    const int eights = ceil_div(g.rows, 8);
    const double rate = warps * parts * 2 * kMatrixRate * eights;
    const int at_once = kernel == Kernel::kStep ? 4 : 2; // eights that share a pass
    const double wait = g.warp_blocks * kMatrixLatency * eights / std::min(eights, at_once);
    const double read = double(warps) * g.warp_blocks * eights * 4; // 4 clocks a 16-byte load
    multiply = std::max({rate, wait, read});
    passes = ceil_div(eights, at_once);
  } else {
    const double elements = 64.0 / s.stored;
    const double rate = g.rows * double(g.units) * g.blocks * elements / kFmaRate *
                        (p.precision == Precision::kFloat64 ? 2 : 1);
    const double read = double(warps) * g.warp_blocks * g.rows * 4;
    multiply = std::max(rate, read) + 8 * g.warp_blocks;
    passes = ceil_div(g.rows, 4);
  }
  const double sums = double(g.rows) * g.units * g.warps_k * s.sum * 2 / kSharedRate;
  const double chunk = 2 * kBlockBarrier + kElementwise;
  double step = chunks * chunk + sums;
  switch (kernel) {
  case Kernel::kCluster:
    step += multiply + warps * (parts - held) * passes * kPartBytes / kSharedRate;
    step += g.members == 1 ? kBlockBarrier
                           : kClusterBarrier + state * (g.members - 1) / g.members / kRemoteRate;
    break;
  case Kernel::kGrid:
    step += multiply + warps * (parts - held) * passes * kPartBytes / kSharedRate;
    step +=
        3 * kL2 + 2 * kBlockBarrier + std::max(state / kL2Rate, state * blocks_of_grid / kL2Total);
    break;
  case Kernel::kStep: {
    const double waves = ceil_div(blocks_of_grid, 132); // of blocks that run at the same time
    const double read = warps * parts * passes * kPartBytes;
    step += std::max({multiply, read / kL2Rate, read * std::min(blocks_of_grid, 132) / kL2Total});
    step = step * waves + 2 * kL2 + kLaunch;
    break;
  }
  }
  return step;
}

void check(const Problem& p) {
  if (p.T < 1 || p.B < 1 || p.H < 1 || p.directions < 1 || p.directions > 2) {
    throw std::invalid_argument("T, B and H must be at least 1 and directions 1 or 2, got " +
                                std::to_string(p.T) + ", " + std::to_string(p.B) + ", " +
                                std::to_string(p.H) + ", " + std::to_string(p.directions));
  }
  if (p.B > (1 << 30) || p.H > (1 << 20) || p.T > (1 << 30)) {
    throw std::invalid_argument("T, B or H is too large for the CUDA kernels");
  }
}

const char* name_of(Kernel kernel) {
  return kernel == Kernel::kCluster ? "cluster" : kernel == Kernel::kGrid ? "grid" : "step";
}

// As many as the 4 KiB of a kernel's arguments hold.
struct Numbers {
  int32_t values[1000];
};

__global__ void __launch_bounds__(kThreads)
    store(const __grid_constant__ Numbers numbers, int count, int64_t* to) {
  for (int i = device::thread(); i < count; i += kThreads) {
    to[i] = numbers.values[i];
  }
}

size_t align(size_t bytes) { return (bytes + 15) / 16 * 16; }

} // namespace

std::vector<Plan> plans(const Problem& p, const Kernel* force) {
  check(p);
  const device::Machine machine = device::machine();
  const Sizes s = sizes(p.precision);
  std::vector<Plan> fitting;
  const auto add = [&](Kernel kernel, const Geometry& g) {
    Plan plan{kernel, g, shared_bytes(g, p, kernel), 0, 0, 0, clocks(g, p, kernel)};
    if (plan.shared > size_t(machine.shared)) {
      return;
    }
    const size_t teams = size_t(g.directions) * g.groups;
    plan.weights = g.directions * g.weight_words() * 16;
    plan.states = kernel == Kernel::kCluster ? 0 : teams * 2 * g.state_words() * 16;
    plan.flags = kernel == Kernel::kGrid ? align(teams * g.members * sizeof(uint32_t)) : 0;
    fitting.push_back(plan);
  };
  for (const auto& [tiles, warps_m] :
       {std::pair{1, 1}, {2, 1}, {2, 2}, {2, 3}, {2, 4}, {2, 5}, {2, 6}, {2, 7}, {2, 8}}) {
    Geometry g = members(p, tiles, warps_m);
    if (p.precision != Precision::kFloat64) {
      // Fewer rows a group are faster, so there are as many groups as run at the same time.
      const int clusters = kernels(p.precision).active_clusters(tiles, g.members);
      const int teams = machine.processors / g.members;
      const auto each_chunk = [&](Kernel kernel, int at_once) {
        int before = 0;
        for (const int chunk : kChunks) {
          deal(g, p, at_once / p.directions, chunk);
          if (g.chunk != before) {
            add(kernel, g);
          }
          before = g.chunk;
        }
      };
      if (clusters > 0 && (force == nullptr || *force == Kernel::kCluster)) {
        each_chunk(Kernel::kCluster, clusters);
      }
      if (teams >= p.directions && (force == nullptr || *force == Kernel::kGrid)) {
        each_chunk(Kernel::kGrid, teams);
      }
    }
    if (tiles == 2 && (force == nullptr || *force == Kernel::kStep)) {
      deal(g, p, ceil_div(p.B, s.columns * 4), kChunks[0]);
      add(Kernel::kStep, g);
    }
  }
  if (fitting.empty()) {
    throw std::invalid_argument(std::string("the ") + name_of(*force) +
                                " kernel cannot hold W_hh of H = " + std::to_string(p.H) +
                                (s.sum == 8 ? " in float64" : "") + " on this device, with " +
                                std::to_string(machine.processors) +
                                " multiprocessors, clusters of up to " +
                                std::to_string(machine.cluster) + " and " +
                                std::to_string(machine.shared) + " bytes of shared memory");
  }
  std::stable_sort(fitting.begin(), fitting.end(),
                   [](const Plan& a, const Plan& b) { return a.clocks < b.clocks; });
  return fitting;
}

Choice choose(const Problem& p, const Kernel* force) {
  const std::vector<Plan> all = plans(p, force);
  const Plan& best = all.front();
  const Geometry& g = best.geometry;
  char text[300];
  std::snprintf(
      text, sizeof text,
      "%s kernel: %d groups of %d blocks, each %d of %d units for %d of %d rows, %.1f KiB "
      "of shared memory; predicted %.2f us a step",
      name_of(best.kernel), g.directions * g.groups, g.members, g.units, g.H, g.rows, int(p.B),
      double(best.shared) / 1024, best.clocks / kClock);
  std::string reason = text;
  for (Kernel other : {Kernel::kCluster, Kernel::kGrid, Kernel::kStep}) {
    const auto found = std::find_if(all.begin(), all.end(),
                                    [&](const Plan& plan) { return plan.kernel == other; });
    if (other != best.kernel && found != all.end()) {
      std::snprintf(text, sizeof text, ", %s kernel %.2f", name_of(other), found->clocks / kClock);
      reason += text;
    } else if (other != best.kernel) {
      reason += std::string(", ") + name_of(other) + " kernel " +
                (force != nullptr ? "not asked for" : "does not fit");
    }
  }
  return {best.kernel, best.workspace(), reason};
}

void run(const Problem& p, const Kernel* force, const Direction* directions, void* workspace,
         void* stream) {
  run(p, plans(p, force).front(), directions, workspace, stream);
}

void run(const Problem& p, const Plan& plan, const Direction* directions, void* workspace,
         void* stream) {
  const Kernels& of = kernels(p.precision);
  Call call{};
  call.geometry = plan.geometry;
  call.T = int(p.T), call.B = int(p.B), call.starts = p.starts;
  call.backward = p.backward, call.relu = p.relu;
  bool ends = false;
  for (int d = 0; d < p.directions; ++d) {
    call.direction[d] = directions[d];
    ends |= directions[d].end != nullptr;
  }
  call.first = 0, call.last = call.T + (p.backward && ends ? 1 : 0);
  char* const memory = static_cast<char*>(workspace);
  call.weights = reinterpret_cast<uint4*>(memory);
  if (plan.states > 0) {
    call.states = reinterpret_cast<uint4*>(memory + plan.weights);
  }
  if (plan.flags > 0) {
    call.flags = reinterpret_cast<uint32_t*>(memory + plan.weights + plan.states);
  }
  const size_t words = (plan.weights + plan.states) / 16;
  const int blocks = int(std::min<size_t>((words + kThreads - 1) / kThreads,
                                          size_t(2) * device::machine().processors));
  of.prepare(call, blocks, stream);
  of.recur(plan, call, stream);
}

void upload(const int64_t* numbers, int64_t n, int64_t* to, void* stream) {
  constexpr int kMost = sizeof(Numbers) / sizeof(int32_t);
  for (int64_t i = 0; i < n; i += kMost) {
    const int count = int(std::min<int64_t>(kMost, n - i));
    Numbers part{};
    std::copy_n(numbers + i, count, part.values);
    device::launch("upload", &store, kThreads, {1, 1, false, 0, stream}, part, count, to + i);
  }
}

} // namespace rnnfast::cuda
