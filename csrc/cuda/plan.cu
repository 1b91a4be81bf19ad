#include "plan.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <mutex>
#include <tuple>
#include <type_traits>

#include "step.h"

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

// The model of the machine, in clocks of a multiprocessor. The constants were measured on an H100
// with kernels that have only a step. README.md compares measurements with the predictions of this
// model.
constexpr double kClock = 1.98e3;        // a microsecond
constexpr double kLaunch = 2.2 * kClock; // from one launch of a stream to the next
constexpr double kMatrixLatency = 33;    // of a matrix instruction that waits for the one before
constexpr double kMatrixRate = 2;        // clocks of a multiprocessor for each matrix instruction
constexpr double kFmaRate = 128;         // multiply-adds a clock
constexpr double kSharedRate = 128;      // bytes a clock
constexpr double kL2 = 263;              // from a block to L2 or back
constexpr double kL2Rate = 64;           // bytes a clock that a block receives
constexpr double kL2Total = 3100;        // bytes a clock, of the whole machine
constexpr double kMatrixStep = 230;      // a step without the product: barriers, sums, function
constexpr double kMatrixWarp = 25;       // for each warp that stores sums
constexpr double kScalarStep = 330;      // a step without the product, with FMA
constexpr double kRow = 65;              // each row after the first, with matrix instructions
constexpr double kScalarRow = 250;       // each row after the first, with FMA
constexpr double kStepFactor = 3.3;      // the step kernel took 92 us where this counts 28
// Exchanges: a fixed part, a part for each member or block, and a part for each byte. In a cluster
// these are the bytes of a member's part that all receive, and through L2 those of the whole state.
constexpr double kCluster = 500, kClusterMember = 9, kClusterBytes = 1 / 17.0;
constexpr double kNumbered = 480, kNumberedBlock = 6.5, kNumberedBytes = 0.376;
constexpr double kCounted = 2500, kCountedBlock = 2.5, kCountedBytes = 0.016;

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

// Deals the batch out to groups of at most `most` rows. If more groups are needed than run at the
// same time, their number is as small as possible.
void deal(Geometry& g, const Problem& p, int at_once, int most) {
  const int groups = std::max(1, at_once / p.directions);
  g.rows = std::min(most, ceil_div(p.B, std::min<int64_t>(groups, p.B)));
  // If the groups run one after another, the last ones have about as many rows as the first.
  const int waves = ceil_div(ceil_div(p.B, g.rows), groups);
  g.rows = std::min(most, ceil_div(p.B, std::min<int64_t>(int64_t(waves) * groups, p.B)));
  g.groups = ceil_div(p.B, g.rows);
}

// Returns the predicted clocks of a step of a kernel that keeps W_hh on the chip.
double clocks(const Geometry& g, const Problem& p, const Shape& shape, int at_once) {
  const double stored = sizes(p.precision).stored, warps = g.threads / 32.0;
  const double state = double(g.rows) * g.H * stored; // bytes of the state of a group
  double step = 0;
  if (shape.matrix) {
    const double eights = ceil_div(g.rows, 8), mma = g.units / 16.0 * g.blocks * 2 * eights;
    const double chain = kMatrixLatency * g.blocks / (warps / (g.units / double(shape.unit_step)));
    step = std::max(mma * kMatrixRate, chain) + kRow * (g.rows - 1);
    step += shape.together ? 0 : kMatrixStep + kMatrixWarp * warps;
  } else {
    const double fma = double(g.units) * g.blocks * 16 * g.rows / kFmaRate;
    const double read = double(g.units) * g.blocks * 64 * g.rows / kSharedRate / 4;
    step = fma + read + kScalarRow * (g.rows - 1);
    step += shape.together ? 0 : kScalarStep;
  }
  // The part of W that registers do not hold is read in every step.
  const double held = 512.0 * g.threads, weights = double(g.units) * g.blocks * 64;
  step += std::max(0.0, weights - held) / kSharedRate * (shape.matrix ? ceil_div(g.rows, 8) : 1);
  const int blocks = g.groups * g.members * g.directions;
  if (shape.kernel == Kernel::kCluster && shape.together) {
    step += kCluster + kClusterMember * g.members +
            g.rows * g.units * stored * g.members * kClusterBytes;
  } else if (shape.numbered) {
    step += kNumbered + kNumberedBlock * std::min(blocks, 132) + kNumberedBytes * state;
  } else if (shape.together) {
    step += kCounted + kCountedBlock * std::min(blocks, 132) + kCountedBytes * state;
  }
  return step * ceil_div(g.groups * g.directions, at_once); // waves
}

constexpr int kStepChunk = 32; // rows that the step kernel computes at a time

Geometry step_geometry(const Problem& p, int warps_m) {
  const Sizes s = sizes(p.precision);
  Geometry g{};
  g.H = int(p.H), g.directions = p.directions, g.warps_m = warps_m, g.threads = kThreads;
  g.units = warps_m * kTiles * 16;
  g.members = ceil_div(p.H, g.units);
  g.blocks = ceil_div(p.H * s.stored, 64);
  g.warp_blocks = ceil_div(g.blocks, kWarps / warps_m);
  g.warps_k = ceil_div(g.blocks, g.warp_blocks);
  g.rows = ceil_div(p.B, ceil_div(p.B, s.columns * 4));
  g.groups = ceil_div(p.B, g.rows);
  g.chunk = std::min(kPairs * (kThreads / (g.units / 2)), kStepChunk);
  // With matrix instructions a chunk has 8, 16 or 32 rows, so that it needs no padding.
  g.chunk = s.columns == 1 ? g.chunk : g.chunk < 16 ? 8 : g.chunk < 32 ? 16 : 32;
  g.chunk = std::min(g.chunk, padded(g.rows, s.columns));
  g.padded_rows = g.rows / g.chunk * g.chunk + padded(g.rows % g.chunk, s.columns);
  return g;
}

double step_clocks(const Geometry& g, const Problem& p) {
  const Sizes s = sizes(p.precision);
  const double warps = g.warps_m * g.warps_k, parts = double(g.warp_blocks) * kTiles; // of a warp
  const int blocks = g.directions * g.groups * g.members;
  double multiply = 0, passes = 0; // passes over the weights
  if (s.columns == 8) {
    const int eights = ceil_div(g.rows, 8);
    const double wait = g.warp_blocks * kMatrixLatency * eights / std::min(eights, 4);
    const double read = warps * g.warp_blocks * eights * 4; // 4 clocks a 16-byte load
    multiply = std::max({warps * parts * 2 * kMatrixRate * eights, wait, read});
    passes = ceil_div(eights, 4);
  } else {
    const double rate = g.rows * double(g.units) * g.blocks * (64.0 / s.stored) / kFmaRate *
                        (p.precision == Precision::kFloat64 ? 2 : 1);
    multiply = std::max(rate, warps * g.warp_blocks * g.rows * 4) + 8 * g.warp_blocks;
    passes = ceil_div(g.rows, 4);
  }
  const double sums = double(g.rows) * g.units * g.warps_k * s.sum * 2 / kSharedRate;
  const double read = warps * parts * passes * kPartBytes;
  const double waves = ceil_div(blocks, 132); // a wave is the blocks that run at the same time
  const double step = ceil_div(g.rows, g.chunk) * 200 + sums +
                      std::max({multiply, read / kL2Rate, read * std::min(blocks, 132) / kL2Total});
  return kStepFactor * step * waves + 2 * kL2 + kLaunch;
}

size_t step_shared(const Geometry& g, const Problem& p) {
  const Sizes s = sizes(p.precision);
  return size_t(g.warps_k) * padded(g.chunk, s.columns) * g.sum_stride() * s.sum;
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

const char* name_of(Kernel kernel) { return kKernelNames[int(kernel)]; }

// Returns the clocks that cuDNN takes for a step where it launches kernels for each step. The
// formulas are fitted to the measurements in README.md, which are of B <= 256. Where cuDNN keeps
// W_hh on the chip, the kernels here are predicted to be faster for all sizes that it holds. There
// the result is 0, which means that there is nothing to compare. float64 has not been measured and
// counts as float32. In cuDNN and here a backward step takes as long as a forward step.
double cudnn_clocks(const Problem& p) {
  const double gflop = 2e-9 * double(p.B) * p.H * p.H * p.directions;
  switch (p.precision) {
  case Precision::kFloat32:
  case Precision::kFloat64:
    return p.H <= 384 ? 0 : kClock * std::min(15 + 61 * gflop, 27 + 39 * gflop);
  case Precision::kTf32:
    return p.H <= 384 ? 0 : kClock * (15 + 6.9 * gflop);
  case Precision::kBfloat16:
    return kClock * (11.5 + 2.6 * gflop);
  case Precision::kFloat16:
    return p.H <= 384 ? 0 : kClock * std::min(3.2 + 10.6 * gflop, 11.5 + 2.6 * gflop);
  }
  return 0;
}

bool slower_than_cudnn(const Plan& plan, const Problem& p) {
  const double cudnn = cudnn_clocks(p);
  return cudnn > 0 && plan.clocks > cudnn;
}

// The numbers of one launch. The arguments of a kernel have 4 KiB, which hold this many.
struct Numbers {
  int32_t values[1000];
};

__global__ void __launch_bounds__(kThreads)
    store(const __grid_constant__ Numbers numbers, int count, int64_t* to) {
  for (int i = device::thread(); i < count; i += kThreads) {
    to[i] = numbers.values[i];
  }
}

// Returns how many clusters of this size the current device can run at the same time.
int active_clusters(const Shape& shape, const Problem& p, const Geometry& g) {
  const device::Launch how{g.members, g.members, false, shape.shared, nullptr};
  return device::active_clusters(shape.function[int(Mode::kDense)][p.backward], g.threads, how);
}

size_t align(size_t bytes) { return (bytes + 15) / 16 * 16; }

} // namespace

std::vector<Plan> plans(const Problem& p, const Kernel* force) {
  check(p);
  const device::Machine machine = device::machine();
  const Sizes s = sizes(p.precision);
  const Kernels& of = kernels(p.precision);
  std::vector<Plan> fitting;
  for (const Shape* shape = of.shapes; shape != of.shapes + of.count; ++shape) {
    if ((force != nullptr && *force != shape->kernel) ||
        int64_t(shape->blocks) * 64 < p.H * s.stored || shape->shared > size_t(machine.shared)) {
      continue;
    }
    const int H = int(p.H);
    for (int units = shape->unit_step; units <= shape->most_units; units += shape->unit_step) {
      Geometry g{};
      g.H = H, g.directions = p.directions, g.units = units, g.blocks = shape->blocks;
      g.members = ceil_div(H, units), g.threads = shape->threads(units);
      g.by_rows = !shape->matrix, g.warps_m = units / shape->unit_step;
      int at_once = 0; // the groups that run at the same time
      if (shape->kernel == Kernel::kGrid) {
        at_once = units == shape->most_units ? machine.processors / g.members : 0;
      } else if (units > shape->unit_step && ceil_div(H, units - shape->unit_step) == g.members) {
        continue; // fewer units give the same number of members
      } else if (!shape->together) {
        at_once = g.members == 1 ? machine.processors : 0;
      } else if (g.members > 1 && g.members <= machine.cluster) {
        at_once = active_clusters(*shape, p, g);
      }
      if (at_once == 0) {
        continue;
      }
      deal(g, p, at_once, shape->numbered ? 1 : shape->rows(units));
      const size_t teams = size_t(g.directions) * g.groups;
      fitting.push_back({shape->kernel, shape, g, at_once, shape->shared,
                         size_t(g.directions * g.weight_words() * 16), teams * shape->group_bytes,
                         shape->kernel == Kernel::kGrid ? align(teams * sizeof(uint32_t)) : 0,
                         p.backward ? size_t(g.row_words() * 16) : 0,
                         clocks(g, p, *shape, at_once)});
    }
  }
  for (int warps_m = 1; warps_m <= kWarps; ++warps_m) {
    if (force == nullptr || *force == Kernel::kStep) {
      const Geometry g = step_geometry(p, warps_m);
      const size_t teams = size_t(g.directions) * g.groups;
      fitting.push_back({Kernel::kStep, nullptr, g, int(teams), step_shared(g, p),
                         size_t(g.directions * g.weight_words() * 16),
                         teams * 2 * g.state_words() * 16, 0, 0, step_clocks(g, p)});
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

Plan plan_of(const Problem& p, const Kernel* force) {
  check(p);
  const device::Machine machine = device::machine();
  const std::tuple key(machine.id, machine.processors, p.B, p.H, p.directions, p.backward,
                       p.precision, force == nullptr ? -1 : int(*force));
  static std::mutex mutex;
  static std::map<std::remove_const_t<decltype(key)>, Plan> known;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find(key);
    if (found != known.end()) {
      return found->second;
    }
  }
  const Plan plan = plans(p, force).front();
  const std::lock_guard<std::mutex> lock(mutex);
  constexpr size_t kMost = 1000; // batches of many sizes must not fill the memory
  if (known.size() >= kMost) {
    known.clear();
  }
  known.emplace(key, plan);
  return plan;
}

size_t workspace(const Problem& p, const Kernel* force) { return plan_of(p, force).workspace(); }

bool prefers_torch(const Problem& p) { return slower_than_cudnn(plan_of(p, nullptr), p); }

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
  const double cudnn = cudnn_clocks(p);
  if (cudnn > 0) {
    std::snprintf(text, sizeof text, ", cuDNN %.2f", cudnn / kClock);
    reason += text;
  }
  const bool torch = force == nullptr && slower_than_cudnn(best, p);
  return {best.kernel, torch, best.workspace(),
          torch ? "torch's own path; otherwise " + reason : reason};
}

void run(const Problem& p, const Kernel* force, const Direction* directions, void* workspace,
         void* stream) {
  run(p, plan_of(p, force), directions, workspace, stream);
}

void run(const Problem& p, const Plan& plan, const Direction* directions, void* workspace,
         void* stream) {
  const Kernels& of = kernels(p.precision);
  const Geometry& g = plan.geometry;
  Call call{};
  call.geometry = g;
  call.T = int(p.T), call.B = int(p.B), call.starts = p.starts;
  call.backward = p.backward, call.relu = p.relu, call.reset = p.reset;
  call.leak = p.leak != nullptr ? *p.leak : Leaky{};
  bool ends = false;
  for (int d = 0; d < p.directions; ++d) {
    call.direction[d] = directions[d];
    ends |= directions[d].end != nullptr;
  }
  char* const memory = static_cast<char*>(workspace);
  uint4* const weights = reinterpret_cast<uint4*>(memory);
  call.weights = weights;
  const int teams = g.directions * g.groups;
  if (plan.states > 0) {
    call.states = reinterpret_cast<uint4*>(memory + plan.weights);
    call.state_words = int64_t(plan.states) / 16 / teams;
    call.zero_states = plan.kernel != Kernel::kStep;
  }
  if (plan.counters > 0) {
    call.counters = reinterpret_cast<uint32_t*>(memory + plan.weights + plan.states);
  }
  if (plan.zeros > 0) {
    call.zeros = reinterpret_cast<uint4*>(memory + plan.weights + plan.states + plan.counters);
  }
  const size_t words = (plan.weights + plan.states) / 16;
  const int blocks = int(std::min<size_t>((words + kThreads - 1) / kThreads,
                                          size_t(2) * device::machine().processors));
  of.prepare(call, weights, blocks, stream);
  if (plan.kernel == Kernel::kStep) {
    const device::Launch how{teams * g.members, 1, false, plan.shared, stream};
    void (*const step)(Call) = of.step[p.leak != nullptr];
    device::allow("step kernel", step, how);
    const int last = call.T + (p.backward && ends ? 1 : 0);
    for (call.first = 0; call.first < last; ++call.first) {
      device::launch("step kernel", step, kThreads, how, call);
    }
    return;
  }
  const Mode mode = p.leak != nullptr         ? Mode::kLeaky
                    : p.reset.data != nullptr ? Mode::kResets
                    : p.starts != nullptr     ? Mode::kPacked
                                              : Mode::kDense;
  if (call.leak.dstates.data == nullptr) {
    call.leak.dstates = {call.zeros, 0, 0};
  }
  const Sizes s = sizes(p.precision);
  for (int d = 0; d < p.directions; ++d) {
    Direction& direction = call.direction[d];
    if (p.backward && direction.in.data == nullptr) {
      direction.in = {call.zeros, 0, 0};
    }
    if (mode == Mode::kDense && call.steps(d).from_end) {
      const auto turn = [&](auto& sequence, int bytes) {
        using Data = decltype(sequence.data);
        const intptr_t last =
            reinterpret_cast<intptr_t>(sequence.data) + (p.T - 1) * sequence.step * bytes;
        sequence.data = sequence.data == nullptr ? nullptr : reinterpret_cast<Data>(last);
        sequence.step = -sequence.step;
      };
      turn(direction.in, p.backward ? s.stored : s.sum);
      turn(direction.h, s.stored);
      turn(direction.out, s.stored);
    }
  }
  void (*const kernel)(Call) = plan.shape->function[int(mode)][p.backward];
  const bool grid = plan.kernel == Kernel::kGrid;
  const char* const name = grid ? "grid kernel" : "cluster kernel";
  // The blocks of the grid kernel must all run at the same time. Other groups need not.
  const int at_once = grid ? std::min(plan.groups_at_once, teams) : teams;
  for (int first = 0; first < teams; first += at_once) {
    call.first_block = first * g.members;
    const device::Launch how{std::min(at_once, teams - first) * g.members, grid ? 1 : g.members,
                             grid, plan.shared, stream};
    device::allow(name, kernel, how);
    device::launch(name, kernel, g.threads, how, call);
  }
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
