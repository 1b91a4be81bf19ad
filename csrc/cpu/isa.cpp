// The choice of the instruction set at run time.
#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace rnnfast {
namespace {

std::atomic<const Isa*> chosen{nullptr};

const Isa* find(const std::string& name, const char* source) {
  std::string names;
  for (const Isa* isa : available_isas()) {
    if (name == isa->name) {
      return isa;
    }
    names += names.empty() ? "" : ", ";
    names += isa->name;
  }
  throw std::invalid_argument(std::string(source) + " must be one of " + names +
                              ", which this CPU can run, got '" + name + "'");
}

} // namespace

std::vector<const Isa*> available_isas() {
  std::vector<const Isa*> list;
  for (const Isa* isa : {
           &kGeneric,
#if defined(__x86_64__)
#if defined(RNNFAST_TEST_ISAS)
           &kAvx512OnAvx2,
#if defined(RNNFAST_AMX)
           &kAmxEmulated,
#endif
#endif
#if defined(RNNFAST_AMX)
           &kAmx, // not last, because it has not run on a CPU that has AMX yet
#endif
           &kAvx2,
           &kAvx512,
           &kAvx512Bf16,
#elif defined(__aarch64__)
           &kNeon,
#endif
       }) {
    if (isa->available()) {
      list.push_back(isa);
    }
  }
  return list;
}

const Isa& current_isa() {
  const Isa* isa = chosen.load(std::memory_order_acquire);
  if (isa == nullptr) {
    set_isa("");
    isa = chosen.load(std::memory_order_acquire);
  }
  return *isa;
}

void set_isa(const std::string& name) {
  const char* env = std::getenv("RNNFAST_ISA");
  const Isa* isa = !name.empty() ? find(name, "isa")
                   : (env != nullptr && env[0] != '\0')
                       ? find(env, "the environment variable RNNFAST_ISA")
                       : available_isas().back();
  if (isa->enable != nullptr && !isa->enable()) {
    throw std::invalid_argument(
        std::string("isa must be one that the operating system lets this process use, got '") +
        isa->name + "'");
  }
  chosen.store(isa, std::memory_order_release);
}

} // namespace rnnfast
