// Compares the CUDA kernels of leaky units with a loop over time; see test_cuda.cpp.
#include "cuda_testing.h"

#include <algorithm>

#include "cuda/leak.h"

namespace rnnfast::cuda {
namespace {

double value_of(Nonlinearity f, double x) {
  switch (f) {
  case Nonlinearity::kTanh:
    return std::tanh(x);
  case Nonlinearity::kRelu:
    return std::max(x, 0.0);
  case Nonlinearity::kSigmoid:
    return 1 / (1 + std::exp(-x));
  case Nonlinearity::kSoftplus:
    return x > 100 ? x : std::log1p(std::exp(x));
  case Nonlinearity::kLinear:
    break;
  }
  return x;
}

double derivative_of(Nonlinearity f, double y) { // from the value y of f
  switch (f) {
  case Nonlinearity::kTanh:
    return 1 - y * y;
  case Nonlinearity::kRelu:
    return y > 0;
  case Nonlinearity::kSigmoid:
    return y * (1 - y);
  case Nonlinearity::kSoftplus:
    return 1 - std::exp(-y);
  case Nonlinearity::kLinear:
    break;
  }
  return 1;
}

// The tolerance is relative to the value, however small it is: sigmoid(-20) is 2e-9.
template <class E> void check_nonlinearity(Nonlinearity f, const Format& format) {
  const auto check = [&](double x) {
    typename E::Sum value[1][1] = {{typename E::Sum(x)}};
    apply<E>(f, value);
    const double expected = value_of(f, x);
    if (!(std::abs(value[0][0] - expected) <= format.tolerance * std::abs(expected))) {
      fail(std::string(format.name) + ": nonlinearity " + std::to_string(int(f)) + " of " +
           std::to_string(x));
    }
  };
  for (double x = -20; x <= 20; x += 0.375) {
    check(x);
  }
  check(-1000); // exp(1000) is infinite
  check(1000);
}

} // namespace

void check_nonlinearities() {
  for (int f = 0; f < 5; ++f) {
    check_nonlinearity<Float32>(Nonlinearity(f), kFormats[0]);
    check_nonlinearity<Tf32>(Nonlinearity(f), kFormats[1]);
    check_nonlinearity<Bfloat16>(Nonlinearity(f), kFormats[2]);
    check_nonlinearity<Float16>(Nonlinearity(f), kFormats[3]);
    check_nonlinearity<Float64>(Nonlinearity(f), kFormats[4]);
  }
}

int check_leaky(int64_t T, int64_t B, int64_t H, Layout layout, bool backward, unsigned bits,
                const Format& format, Kernel kernel) {
  const auto bit = [bits](int i) { return (bits >> (31 - i) & 1) != 0; };
  const bool current = bit(1), with_reset = bit(2), with_begin = bit(3);
  const bool with_end = bit(4), with_kept = bit(5), with_dstates = bit(6), with_dy = bit(7);
  const bool with_bias = bit(8);
  const Nonlinearity f = Nonlinearity(bits % 5);
  const Precision p = format.precision;
  const size_t sum_bytes = format.stored == 8 ? 8 : 4;
  std::vector<int64_t> lengths(B, T);
  for (int64_t b = 0; layout == Layout::kPacked && b < B; ++b) {
    lengths[b] = std::max<int64_t>(1, T - b * T / B);
  }
  const int64_t pitch = layout == Layout::kHalf ? 2 * H + 1 : H;
  const Rows rows(layout, T, B, lengths, pitch), reset_rows(layout, T, B, lengths, 1);
  std::vector<char> resets(reset_rows.size);
  if (with_reset) {
    std::generate(resets.begin(), resets.end(), [] { return uniform() < -0.4; });
  }
  const auto is_reset = [&](int64_t t, int64_t b) { return resets[reset_rows.at(t, b)] != 0; };

  const auto states = [&](int64_t count) { return Array(p, format.stored, count); };
  Array w = states(H * H), in(p, backward ? format.stored : sum_bytes, rows.size);
  Array h = states(rows.size), dstates = states(rows.size), bias = states(H), alpha = states(H);
  Array begin = states(B * H), r0 = states(B * H);
  for (Array* a : {&in, &h, &dstates, &bias, &begin}) {
    a->fill();
  }
  for (int64_t i = 0; i < H * H; ++i) {
    w.set(i, uniform() / std::sqrt(double(H)));
  }
  for (int64_t j = 0; j < H; ++j) {
    alpha.set(j, 0.55 + 0.45 * uniform());
  }
  for (int64_t i = 0; i < rows.size; ++i) { // what the function may return
    const double y = h.get(i);
    const bool positive = f == Nonlinearity::kSigmoid || f == Nonlinearity::kSoftplus;
    h.set(i, f == Nonlinearity::kRelu ? std::max(y, 0.0) : positive ? std::abs(y) : y);
  }
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t i = b * H; i < (b + 1) * H; ++i) {
      if (!backward && (!with_begin || is_reset(0, b))) {
        begin.set(i, 0);
      }
      const double state = backward ? uniform() : begin.get(i);
      r0.set(i, current ? value_of(f, state) : state);
    }
  }

  std::vector<double> out(rows.size), kept(rows.size), end(B * H);
  for (int64_t b = 0; b < B; ++b) {
    std::vector<double> carry(H), operand(H), product(H);
    for (int64_t j = 0; j < H; ++j) {
      carry[j] = with_begin || !backward ? begin.get(b * H + j) : 0;
      operand[j] = backward ? 0 : round_to(r0.get(b * H + j), format.operand_bits);
    }
    const auto multiply = [&] {
      for (int64_t j = 0; j < H; ++j) {
        product[j] = 0;
        for (int64_t k = 0; k < H; ++k) {
          const double weight = w.get(backward ? k * H + j : j * H + k);
          product[j] += round_to(weight, format.operand_bits) * operand[k];
        }
      }
    };
    for (int64_t i = 0; i < lengths[b]; ++i) {
      const int64_t t = backward ? lengths[b] - 1 - i : i, at = rows.at(t, b);
      if (!backward && i > 0 && is_reset(t, b)) {
        std::fill(carry.begin(), carry.end(), 0.0);
        const double r = current ? value_of(f, 0) : 0;
        std::fill(operand.begin(), operand.end(), round_to(r, format.operand_bits));
      }
      multiply();
      for (int64_t j = 0; j < H; ++j) {
        const double a = alpha.get(j), given = in.get(at + j);
        double& result = out[at + j];
        if (!backward) {
          const double x = product[j] + given + (with_bias ? bias.get(j) : 0);
          const double target = current ? x : value_of(f, x);
          carry[j] = (1 - a) * carry[j] + a * target;
          result = current ? value_of(f, carry[j]) : carry[j];
          kept[at + j] = current ? carry[j] : target;
        } else {
          const double dr = product[j] + (with_dy ? given : 0);
          const double slope = derivative_of(f, h.get(at + j));
          const double more = current && with_dstates ? dstates.get(at + j) : 0;
          const double whole = (current ? dr * slope : dr) + more + carry[j];
          kept[at + j] = whole;
          result = current ? a * whole : a * whole * slope;
          carry[j] = is_reset(t, b) ? 0 : (1 - a) * whole;
        }
        operand[j] = backward && is_reset(t, b) ? 0 : round_to(result, format.operand_bits);
      }
    }
    multiply();
    for (int64_t j = 0; j < H; ++j) {
      const double slope = current ? derivative_of(f, r0.get(b * H + j)) : 1;
      end[b * H + j] = carry[j] + (backward ? product[j] * slope : 0);
    }
  }

  // Run some of the cuts, and different ones in each case.
  constexpr size_t kSome = 2;
  static size_t next = 0;
  Problem problem{T, B, H, 1, backward, false, p, nullptr};
  problem.starts = layout == Layout::kPacked ? rows.starts.data() : nullptr;
  if (with_reset) {
    problem.reset = {reinterpret_cast<const bool*>(resets.data()), reset_rows.step, reset_rows.row};
  }
  const std::vector<Plan> all = plans(problem, &kernel);
  int ran = 0;
  for (size_t n = 0; n < std::min(kSome, all.size()); ++n, ++ran) {
    const Plan& plan = all[next++ % all.size()];
    const std::string name =
        std::string("leaky ") + format.name + " kernel " + std::to_string(int(kernel)) +
        " T=" + std::to_string(T) + " B=" + std::to_string(B) + " H=" + std::to_string(H) +
        " layout=" + std::to_string(int(layout)) + " bits=" + std::to_string(bits) +
        (current ? " current" : " rate") + " f=" + std::to_string(int(f)) +
        (backward ? " backward" : " forward") + (with_reset ? " reset" : "") + ", shape " +
        std::to_string(plan.shape == nullptr ? -1 : plan.shape - kernels(p).shapes);
    Array found = states(rows.size), found_kept = states(rows.size), found_end = states(B * H);
    Array carry(p, sum_bytes, B * H);
    const auto read = [&](Array& a, bool given) {
      return Sequence<const void>{given ? a.data() : nullptr, rows.step, rows.row};
    };
    const bool with_r0 = current || with_begin;
    const void* const first = with_begin ? begin.data() : nullptr;
    const Leaky leak{current,
                     f,
                     alpha.data(),
                     backward ? (current ? r0.data() : nullptr) : first,
                     read(dstates, with_dstates && backward && current),
                     with_kept ? found_kept.data() : nullptr,
                     carry.data()};
    const Direction direction{false,
                              w.data(),
                              read(in, !backward || with_dy),
                              read(h, backward),
                              {found.data(), rows.step, rows.row},
                              with_bias && !backward ? bias.data() : nullptr,
                              nullptr,
                              backward  ? first
                              : with_r0 ? r0.data()
                                        : nullptr,
                              with_end ? found_end.data() : nullptr};
    problem.leak = &leak;
    void* const workspace = std::aligned_alloc(16, plan.workspace());
    std::memset(workspace, 0xff, plan.workspace());
    run(problem, plan, &direction, workspace, nullptr);
    std::free(workspace);
    std::vector<bool> mine(rows.size);
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t j = 0; j < H; ++j) {
        for (int64_t t = 0; t < lengths[b]; ++t) {
          const int64_t at = rows.at(t, b) + j;
          mine[at] = true;
          compare(name, "out", found.get(at), out[at], format.tolerance);
          if (with_kept) {
            compare(name, "kept", found_kept.get(at), kept[at], format.tolerance);
          }
        }
        if (with_end) {
          compare(name, "end", found_end.get(b * H + j), end[b * H + j], format.tolerance);
        }
      }
    }
    for (int64_t i = 0; i < rows.size; ++i) {
      if (!mine[i] && !(found.untouched(i) && found_kept.untouched(i))) {
        fail(name + ": wrote outside of its rows");
      }
    }
  }
  return ran;
}

} // namespace rnnfast::cuda
