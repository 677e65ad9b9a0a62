// int8 with the dot product of four bytes in vectors of AVX2 (AVX-VNNI), whose int32 sums are exact.
#define SPARSEDET_LANES 8
#include "kernels/x86_bytes.h"

#include "kernels/int8_kernels.h"

namespace sparsedet {
namespace {

struct AvxVnniInt8 : Int8Product {
  static constexpr int vectors = 2;  // 8 sums, 4 weights and an activation in 16 registers
  static SPARSEDET_INLINE V add_product(V sum, V weight, V x) {
    return (V)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)weight);
  }
};

bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("avxvnni");
}

}  // namespace
extern const LowPrecisionKernels kernels_avxvnni_int8;
const LowPrecisionKernels kernels_avxvnni_int8 = int8_kernels<AvxVnniInt8>(supported);
}  // namespace sparsedet
