#include "kernels/dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace sparsedet {

static const Kernels* const kCompiled[] = {
#if defined(__x86_64__)
    &kernels_avx512,
    &kernels_avx2,
#endif
#if defined(__aarch64__)
    &kernels_neon,
#endif
    &kernels_scalar,
};

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Kernels* kernels : kCompiled)
    if (kernels->supported()) names.push_back(kernels->isa);
  return names;
}

const Kernels& choose_kernels(std::string isa) {
  if (isa.empty()) {
    const char* forced = std::getenv("SPARSEDET_ISA");
    isa = forced ? forced : "";
  }
  std::string known;
  for (const Kernels* kernels : kCompiled) {
    if (isa.empty() ? kernels->supported() : isa == kernels->isa) {
      if (kernels->supported()) return *kernels;
      throw std::invalid_argument("instruction set '" + isa + "' is not available on this CPU");
    }
    known += (known.empty() ? "" : ", ") + std::string(kernels->isa);
  }
  throw std::invalid_argument("unknown instruction set '" + isa + "'; compiled in: " + known);
}

std::string cpu_vendor() {
#if defined(__x86_64__)
  unsigned leaf, name[3];
  if (__get_cpuid(0, &leaf, &name[0], &name[2], &name[1])) {
    char text[sizeof name];  // EBX, EDX, ECX
    std::memcpy(text, name, sizeof name);
    return {text, sizeof name};
  }
#endif
  return "";
}

bool has_bfloat16(const Kernels& kernels) {
  return kernels.bf16 && kernels.bf16->supported();
}

bool has_int8(const Kernels& kernels) {
  return kernels.int8 && kernels.int8->supported();
}

}  // namespace sparsedet
