// A small known product by the kernels that are going to be used. A CPU, a hypervisor or an emulator
// may claim an instruction set and compute it wrongly.
#pragma once
#include "kernels/kernels.h"

namespace sparsedet {

// Whether the product of small integers, which is exact, is right. Takes some microseconds.
bool check_float32(const Float32Kernels& kernels);
bool check_bfloat16(const LowPrecisionKernels& kernels);
bool check_int8(const LowPrecisionKernels& kernels);
bool check_bfloat16(const MatrixKernels& kernels);
bool check_int8(const MatrixKernels& kernels);

}  // namespace sparsedet
