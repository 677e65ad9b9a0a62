// Choice of the kernels.
#pragma once
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace sparsedet {

// Names of the instruction sets of list.h that this CPU supports, best first.
std::vector<std::string> available_isas();

// The kernels of an instruction set; "" means SPARSEDET_ISA from the environment, else the best.
// Throws std::invalid_argument if the name is unknown or the CPU does not support it.
const Kernels& choose_kernels(std::string isa);

// The CPU's vendor as CPUID tells it, such as "GenuineIntel" or "AuthenticAMD"; "" on other CPUs.
std::string cpu_vendor();

// Whether these kernels support bfloat16 on this CPU. Asks for a small known product first, once a
// process: kernels that compute it wrongly are dropped, those of a matrix unit alone too.
bool has_bfloat16(const Kernels& kernels);

// Whether these kernels support int8 on this CPU; as has_bfloat16.
bool has_int8(const Kernels& kernels);

// Tables of kernels that computed a known product wrongly and are not used, as "avx512 bf16".
std::vector<std::string> failed_kernels();

}  // namespace sparsedet
