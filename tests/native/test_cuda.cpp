// Compares the CUDA kernels, which run on the host thread by thread (shim.h), with nested loops.
// The cases have every kernel, way of cutting a problem, dtype, direction, activation and layout.
// Their sizes cross the edges of tiles, blocks of k, chunks, groups and members. The maps, the
// roundings and the choice of a kernel have tests of their own.
//
//   test_cuda [seed] [part of the cases, for example 1/3]
//   test_cuda table     prints what would be chosen on an H200, for csrc/cuda/README.md
#include "cuda_testing.h"

#include <stdexcept>
#include <string>
#include <vector>

using namespace rnnfast;
using namespace rnnfast::cuda;

namespace {

struct Case {
  int64_t T, B, H;
  Layout layout;
  bool relu = false, backward = false, reverse = false;
  int directions = 1;
  bool bias = true, begin = true, end = true, dy = true, reset = false;

  std::string name() const {
    return "T=" + std::to_string(T) + " B=" + std::to_string(B) + " H=" + std::to_string(H) +
           " layout=" + std::to_string(int(layout)) + (relu ? " relu" : " tanh") +
           (backward ? " backward" : " forward") + (reverse ? " reverse" : "") +
           " directions=" + std::to_string(directions) + (bias ? "" : " no bias") +
           (begin ? "" : " no begin") + (end ? "" : " no end") + (dy ? "" : " no dy") +
           (reset ? " reset" : "");
  }
};

struct Tensors {
  Array w, in, h, out, b_ih, b_hh, begin, end;
  bool reverse;
};

int check(const Case& c, const Format& f, Kernel kernel) {
  const Precision p = f.precision;
  const size_t sum_bytes = f.stored == 8 ? 8 : 4;
  std::vector<int64_t> lengths(c.B, c.T);
  for (int64_t b = 0; c.layout == Layout::kPacked && b < c.B; ++b) {
    lengths[b] = std::max<int64_t>(1, c.T - b * c.T / c.B);
  }
  const int64_t pitch = c.layout == Layout::kHalf ? 2 * c.H + 1 : c.H;
  const Rows rows(c.layout, c.T, c.B, lengths, pitch);
  Problem problem{c.T, c.B, c.H, c.directions, c.backward, c.relu, p, nullptr};
  if (c.layout == Layout::kPacked) {
    problem.starts = rows.starts.data();
  }
  const Rows reset_rows(c.layout, c.T, c.B, lengths, c.layout == Layout::kHalf ? 3 : 1);
  std::vector<char> resets(reset_rows.size);
  if (c.reset) {
    std::generate(resets.begin(), resets.end(), [] { return uniform() < -0.4; });
    problem.reset = {reinterpret_cast<const bool*>(resets.data()), reset_rows.step, reset_rows.row};
  }

  std::vector<Tensors> tensors;
  for (int d = 0; d < c.directions; ++d) {
    Tensors t{Array(p, f.stored, c.H * c.H), Array(p, c.backward ? f.stored : sum_bytes, rows.size),
              Array(p, f.stored, rows.size), Array(p, f.stored, rows.size),
              Array(p, f.stored, c.H),       Array(p, f.stored, c.H),
              Array(p, f.stored, c.B * c.H), Array(p, f.stored, c.B * c.H),
              c.reverse != (d == 1)};
    for (Array* a : {&t.in, &t.h, &t.b_ih, &t.b_hh, &t.begin}) {
      a->fill();
    }
    for (int64_t i = 0; i < c.H * c.H; ++i) {
      t.w.set(i, uniform() / std::sqrt(double(c.H)));
    }
    for (int64_t b = 0; !c.backward && !t.reverse && b < c.B; ++b) {
      for (int64_t j = 0; resets[reset_rows.at(0, b)] != 0 && j < c.H; ++j) {
        t.begin.set(b * c.H + j, 0);
      }
    }
    tensors.push_back(t);
  }
  // The nested loops. They round the state as the kernels do when they store it.
  std::vector<std::vector<double>> out(c.directions), end(c.directions);
  for (int d = 0; d < c.directions; ++d) {
    const Tensors& t = tensors[d];
    out[d].assign(rows.size, 0), end[d].assign(c.B * c.H, 0);
    for (int64_t b = 0; b < c.B; ++b) {
      std::vector<double> state(c.H), product(c.H);
      for (int64_t j = 0; j < c.H; ++j) {
        product[j] = state[j] = c.begin ? t.begin.get(b * c.H + j) : 0;
        state[j] = round_to(state[j], f.operand_bits);
      }
      // Whether a reset precedes this time step in the order of the forward pass.
      const auto is_reset = [&](int64_t time) {
        const int64_t later = t.reverse ? time + 1 : time;
        return later < lengths[b] && resets[reset_rows.at(later, b)] != 0;
      };
      for (int64_t i = 0; i < lengths[b]; ++i) {
        const int64_t time = t.reverse != c.backward ? lengths[b] - 1 - i : i;
        const int64_t at = rows.at(time, b);
        if (!c.backward && is_reset(time)) {
          std::fill(state.begin(), state.end(), 0.0);
        }
        if (!c.backward || i > 0) {
          for (int64_t j = 0; j < c.H; ++j) {
            product[j] = 0;
            for (int64_t k = 0; k < c.H; ++k) {
              const double w = t.w.get(c.backward ? k * c.H + j : j * c.H + k);
              product[j] += round_to(w, f.operand_bits) * state[k];
            }
          }
        }
        for (int64_t j = 0; j < c.H; ++j) {
          double value = product[j];
          if (c.backward) {
            const double y = t.h.get(at + j);
            value += c.dy ? t.in.get(at + j) : 0;
            value *= c.relu ? double(y > 0) : 1 - y * y;
          } else {
            value += t.in.get(at + j) + (c.bias ? t.b_ih.get(j) + t.b_hh.get(j) : 0);
            value = c.relu ? std::max(value, 0.0) : std::tanh(value);
          }
          out[d][at + j] = value;
          state[j] = round_to(value, f.operand_bits);
        }
        if (c.backward && is_reset(time)) {
          std::fill(state.begin(), state.end(), 0.0);
        }
      }
      for (int64_t j = 0; j < c.H; ++j) {
        double& last = end[d][b * c.H + j];
        if (!c.backward) {
          last = out[d][rows.at(t.reverse ? 0 : lengths[b] - 1, b) + j];
          continue;
        }
        for (int64_t k = 0; k < c.H; ++k) {
          last += round_to(t.w.get(k * c.H + j), f.operand_bits) * state[k];
        }
      }
    }
  }

  // Run some of the cuts, and different ones in each case.
  constexpr size_t kSome = 3;
  static size_t next = 0;
  const std::vector<Plan> all = plans(problem, &kernel);
  int ran = 0;
  for (size_t n = 0; n < std::min(kSome, all.size()); ++n) {
    const Plan& plan = all[next++ % all.size()];
    const Geometry& g = plan.geometry;
    const std::string name =
        std::string(f.name) + " kernel " + std::to_string(int(kernel)) + " " + c.name() + ", " +
        std::to_string(g.groups) + " groups of " + std::to_string(g.members) + " by " +
        std::to_string(g.units) + ", shape " +
        std::to_string(plan.shape == nullptr ? -1 : plan.shape - kernels(p).shapes);
    if (plan.kernel != kernel) {
      fail(name + ": another kernel than was asked for");
    }
    Direction directions[2];
    for (int d = 0; d < c.directions; ++d) {
      Tensors& t = tensors[d];
      t.out = Array(p, f.stored, rows.size), t.end = Array(p, f.stored, c.B * c.H);
      directions[d] = {t.reverse,
                       t.w.data(),
                       {c.backward && !c.dy ? nullptr : t.in.data(), rows.step, rows.row},
                       {t.h.data(), rows.step, rows.row},
                       {t.out.data(), rows.step, rows.row},
                       c.bias ? t.b_ih.data() : nullptr,
                       c.bias ? t.b_hh.data() : nullptr,
                       c.begin ? t.begin.data() : nullptr,
                       c.end ? t.end.data() : nullptr};
    }
    // The workspace has exactly the size that was asked for, and is full of NaN.
    void* const workspace = std::aligned_alloc(16, plan.workspace());
    std::memset(workspace, 0xff, plan.workspace());
    run(problem, plan, directions, workspace, nullptr);
    std::free(workspace);
    for (int d = 0; d < c.directions; ++d) {
      std::vector<bool> mine(rows.size);
      for (int64_t b = 0; b < c.B; ++b) {
        for (int64_t j = 0; j < c.H; ++j) {
          for (int64_t t = 0; t < lengths[b]; ++t) {
            const int64_t at = rows.at(t, b) + j;
            mine[at] = true;
            compare(name, "out", tensors[d].out.get(at), out[d][at], f.tolerance);
          }
          const int64_t at = b * c.H + j;
          if (c.end) {
            compare(name, "end", tensors[d].end.get(at), end[d][at], f.tolerance);
          }
        }
      }
      for (int64_t i = 0; i < rows.size; ++i) {
        if (!mine[i] && !tensors[d].out.untouched(i)) {
          fail(name + ": wrote outside of its rows");
        }
      }
    }
    ++ran;
  }
  return ran;
}

void check_maps() {
  // Every row belongs to one group, local_rows counts them, and at() finds steps from both ends.
  const int64_t starts[] = {0, 5, 8, 9};
  for (const bool from_end : {false, true}) {
    const Steps packed{3, 5, starts, from_end}, dense{3, 5, nullptr, from_end};
    for (int i = -1; i <= 3; ++i) {
      const int t = from_end ? 2 - i : i;
      const bool there = i >= 0 && i < 3;
      if (packed.at(i).rows != (there ? int(starts[t + 1] - starts[t]) : 0) ||
          dense.at(i).rows != (there ? 5 : 0) ||
          (there && (packed.at(i).start != starts[t] || dense.at(i).start != t))) {
        fail("Steps::at");
      }
    }
    const Sequence<int> s{nullptr, 100, 7};
    if (packed.offset(s, {5, 3}, 2) != 49 || dense.offset(s, {2, 5}, 3) != 221) {
      fail("Steps::offset");
    }
  }
  for (int groups = 1; groups < 7; ++groups) {
    Geometry g{};
    g.groups = groups;
    for (int rows = 0; rows < 20; ++rows) {
      std::vector<int> owners(rows);
      for (int group = 0; group < groups; ++group) {
        for (int l = 0; l < g.local_rows(rows, group); ++l) {
          ++owners.at(g.batch_row(l, group));
        }
      }
      if (std::count(owners.begin(), owners.end(), 1) != rows) {
        fail("rows of groups");
      }
    }
  }
  for (int rows = 0; rows <= 100; ++rows) {
    int reached = 0; // the same loop as in the kernel
    for (int row = 0; row < rows;) {
      row += rows - row > 16 ? 32 : 8;
      reached = row;
    }
    if (padded(rows, 8) != reached || padded(rows, 1) != rows) {
      fail("padded");
    }
  }
}

void check_rounding() {
  for (int i = 0; i < 20000; ++i) {
    const float x = float(std::ldexp(uniform(), int(20 * uniform())));
    if (device::from_bfloat16(device::to_bfloat16(x)) != round_to(x, 7) ||
        device::from_float16(device::to_float16(float(round_to(x, 12) / 1024))) * 0 != 0 ||
        std::abs(device::to_tf32(x) - x) > std::ldexp(std::abs(x), -11)) {
      fail("rounding of " + std::to_string(x));
    }
  }
}

void check_choice() {
  // A W_hh that does not fit on the chip goes to the step kernel. A kernel that is forced and
  // cannot run is an error that says why.
  const Kernel cluster = Kernel::kCluster;
  Problem p{10, 4, 100000, 1, false, false, Precision::kBfloat16, nullptr};
  if (choose(p, nullptr).kernel != Kernel::kStep) {
    fail("a W_hh that does not fit the chip was chosen to be held there");
  }
  for (const Precision precision : {Precision::kBfloat16, Precision::kFloat64}) {
    try {
      p.precision = precision, p.H = precision == Precision::kFloat64 ? 8 : 100000;
      choose(p, &cluster);
      fail("a kernel was forced that cannot run");
    } catch (const std::invalid_argument& error) {
      if (std::string(error.what()).find("cluster kernel cannot hold") == std::string::npos) {
        fail(std::string("the error does not say why: ") + error.what());
      }
    }
  }
  for (const int64_t T : {int64_t(0), int64_t(-1)}) {
    try {
      p.T = T;
      choose(p, nullptr);
      fail("no steps were accepted");
    } catch (const std::invalid_argument&) {
    }
  }
}

void check_memory_of_choices() {
  // A plan is made once for each shape and machine. It does not depend on T.
  Problem p{10, 64, 256, 1, false, false, Precision::kBfloat16, nullptr};
  for (const int processors : {132, 12, 132}) {
    device::host.machine.processors = processors;
    for (const int64_t B : {int64_t(64), int64_t(1)}) {
      p.B = B;
      const Plan made = plans(p, nullptr).front(), known = plan_of(p, nullptr);
      p.T += 1;
      const Plan later = plan_of(p, nullptr);
      if (made.shape != known.shape || made.geometry.groups != known.geometry.groups ||
          made.workspace() != known.workspace() || made.workspace() != later.workspace()) {
        fail("a plan that was remembered is another one");
      }
    }
  }
  device::host.machine.processors = 4;
}

void check_upload() {
  for (const int64_t n : {1, 1000, 1001, 2500}) {
    std::vector<int64_t> numbers(n), found(n + 1, -1);
    for (int64_t i = 0; i < n; ++i) {
      numbers[i] = i * 858993;
    }
    upload(numbers.data(), n, found.data(), nullptr);
    if (!std::equal(numbers.begin(), numbers.end(), found.begin()) || found[n] != -1) {
      fail("upload of " + std::to_string(n));
    }
  }
}

// The table is for a machine with 132 multiprocessors of 227 KiB of shared memory.
void print_table() {
  device::host.machine = {0, 132, 227 << 10, 16};
  const std::pair<const char*, Precision> precisions[] = {{"bfloat16", Precision::kBfloat16},
                                                          {"TF32", Precision::kTf32},
                                                          {"float32", Precision::kFloat32}};
  std::printf("| dtype | H | W_hh, KiB |");
  for (const int B : {1, 4, 16, 64, 128, 256}) {
    std::printf(" B = %d |", B);
  }
  std::printf("\n| --- | ---: | ---: | --- | --- | --- | --- | --- | --- |\n");
  for (const auto& [name, precision] : precisions) {
    for (const int H : {64, 128, 256, 384, 512, 768, 1024, 2048, 4096}) {
      const int bytes = precision == Precision::kBfloat16 ? 2 : 4;
      std::printf("| %s | %d | %d |", name, H, H * H / 1024 * bytes);
      for (const int B : {1, 4, 16, 64, 128, 256}) {
        const Plan plan = plans({512, B, H, 1, false, false, precision, nullptr}, nullptr).front();
        const Geometry& g = plan.geometry;
        const char* const kinds[] = {"cluster", "grid", "step"};
        std::printf(" %.2f %s %dx%d, %.0f |", plan.clocks / 1755,
                    plan.kernel == Kernel::kCluster && g.members == 1 ? "block"
                                                                      : kinds[int(plan.kernel)],
                    g.groups, g.members, double(plan.shared) / 1024);
      }
      std::printf("\n");
    }
  }
}

} // namespace

int main(int count, char** arguments) {
  if (count > 1 && std::string(arguments[1]) == "table") {
    print_table();
    return 0;
  }
  device::host.seed = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 1;
  int part = 0, parts = 1;
  if (count > 2 && (std::sscanf(arguments[2], "%d/%d", &part, &parts) != 2 || part > parts)) {
    fail("the second argument must be like 1/3");
  }
  check_maps();
  check_rounding();
  check_choice();
  check_memory_of_choices();
  check_upload();
  check_nonlinearities();
  const int64_t sizes[][4] = {
      // T, B, H, multiprocessors
      {1, 1, 1, 1},   // everything is an edge
      {3, 2, 7, 2},   // both groups have one row
      {3, 9, 33, 3},  // one unit more than two tiles, one row more than 8
      {4, 5, 40, 5},  // three members of 16 units, groups of several rows
      {2, 21, 65, 5}, // more than a block of k in every dtype, 3 tiles of 8 rows
      {2, 67, 17, 2}, // several chunks, the last of 1 or 3 rows
      {3, 3, 130, 9}, // nine members of 16 units
      {9, 3, 40, 6},  // every phase of a barrier occurs several times
      {6, 1, 20, 3},
  };
  int cases = 0, ran = 0;
  enum class Units { kPlain, kWithResets, kLeaky };
  const auto check_layouts = [&](int64_t T, int64_t B, int64_t H, int64_t processors, Units units) {
    for (const Layout layout :
         {Layout::kTime, Layout::kBatchFirst, Layout::kHalf, Layout::kPacked}) {
      for (const Format& f : kFormats) {
        for (const Kernel kernel : {Kernel::kCluster, Kernel::kGrid, Kernel::kStep}) {
          for (const bool backward : {false, true}) {
            // Every option takes every value many times, but not all combinations occur.
            const unsigned bits = 0x9E3779B9u * unsigned(++cases);
            const auto bit = [bits](int i) { return (bits >> (31 - i) & 1) != 0; };
            if (cases % parts != part % parts ||
                (f.precision == Precision::kFloat64 && kernel != Kernel::kStep)) {
              continue;
            }
            device::host.machine.processors = int(processors);
            if (units == Units::kLeaky) {
              ran += check_leaky(T, B, H, layout, backward, bits, f, kernel);
              continue;
            }
            Case c{T, B, H, layout, bit(0), backward, bit(1)};
            c.directions = 1 + bit(2), c.bias = bit(3), c.begin = bit(4), c.end = bit(5);
            c.dy = bit(6) || bit(7), c.reset = units == Units::kWithResets;
            device::host.machine.processors *= c.directions;
            ran += check(c, f, kernel);
          }
        }
      }
    }
  };
  for (const Units units : {Units::kPlain, Units::kWithResets, Units::kLeaky}) {
    for (const auto& [T, B, H, processors] : sizes) {
      if (units != Units::kWithResets || T > 2) {
        check_layouts(T, B, H, processors, units);
      }
    }
  }
  std::printf("%d cuts of %d cases\n", ran, cases);
}
