// Which kernels run here.
#pragma once
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace sparsedet {

// Names of the instruction sets that were compiled in and that this CPU has, best first.
std::vector<std::string> available_isas();

// The kernels of that name; "" means SPARSEDET_ISA from the environment, else the best.
// Throws std::invalid_argument for a name that is unknown or that this CPU lacks.
const Kernels& choose_kernels(std::string isa);

// Whether bfloat16 activations can be had with these kernels on this CPU.
bool has_bfloat16(const Kernels& kernels);

// The same for int8.
bool has_int8(const Kernels& kernels);

}  // namespace sparsedet
