#include "kernels/dispatch.h"

#include <cstdlib>
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

bool has_bfloat16(const Kernels& kernels) {
  return kernels.words && kernels.words->supported();
}

bool has_int8(const Kernels& kernels) {
  return kernels.bytes && kernels.bytes->supported();
}

}  // namespace sparsedet
