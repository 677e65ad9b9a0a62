// bfloat16 with AVX-512's dot product of pairs (AVX512_BF16), which flushes denormals to zero.
#define SPARSEDET_LANES 16
#include "kernels/avx512_bf16.h"
#include "kernels/bf16_kernels.h"

namespace sparsedet {
namespace {

bool supported() {
  return __builtin_cpu_supports("avx512bf16");
}

}  // namespace
extern const LowPrecisionKernels kernels_avx512_bf16;
const LowPrecisionKernels kernels_avx512_bf16 = bf16_kernels<VectorBfloat16>(supported);
}  // namespace sparsedet
