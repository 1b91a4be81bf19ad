// Runs all tests of the CPU kernels, without torch or Python, so that the sanitizers can watch
// them.
#include <cstdio>
#include <cstring>
#include <ctime>
#include <stdexcept>

#include "cpu/parallel.h"
#include "support.h"

namespace {

void check_isa_names() {
  try {
    set_isa("nosuch");
  } catch (const std::invalid_argument& error) {
    if (std::strstr(error.what(), "generic") == nullptr) {
      fail("the error for a wrong instruction set does not name the choices");
    }
    return;
  }
  fail("a wrong instruction set was accepted");
}

// Run a test and print how much time all of its threads took together.
template <class Test> void run(const char* name, const Test& test) {
  const std::clock_t begin = std::clock();
  test();
  std::printf("%-9s %6.1f s\n", name, double(std::clock() - begin) / CLOCKS_PER_SEC);
  std::fflush(stdout);
}

} // namespace

int main() {
  parallel(2, [](int thread, int threads) {
    if (thread == 0) {
      several_threads = threads > 1;
    }
  });
#if !defined(RNNFAST_LIBGOMP)
  // The vector code does not depend on how threads are made. The build with OpenMP tests all of it.
  all_isas = false;
#endif
  int cases = 0;
  run("isa", check_isa_names);
  run("stacks", test_stacks);
  run("leaky", test_leaky);
  run("gated", test_gated);
  run("generate", test_generate);
  run("stepper", test_stepper);
  run("reservoir", test_reservoir);
  run("loss", test_loss);
  run("dropout", test_dropout);
  run("glove", test_glove);
  run("rnn", [&] { cases = test_rnn(); });
  std::printf("%s, %d cases of rnn, instruction sets:",
              several_threads ? "several threads" : "one thread", cases);
  for (const Isa* isa : isas_to_test()) {
    std::printf(" %s", isa->name);
  }
  std::printf("\n");
}
