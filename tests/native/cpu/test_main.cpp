// Runs all tests of the CPU kernels, without torch or Python, so that the sanitizers can watch
// them.
#include <cstdio>
#include <cstring>
#include <stdexcept>

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

} // namespace

int main() {
  check_isa_names();
  test_stacks();
  test_generate();
  test_stepper();
  test_reservoir();
  test_loss();
  test_dropout();
  test_glove();
  const int cases = test_rnn();
  std::printf("%d cases, instruction sets:", cases);
  for (const Isa* isa : available_isas()) {
    std::printf(" %s", isa->name);
  }
  std::printf("\n");
}
