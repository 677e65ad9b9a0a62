// int8 with AVX2 alone: products of bytes are added in pairs to 16 bits, which saturate, then in
// pairs to 32 bits. The pair limit of the packed weights keeps every pair below 32,768: exact.
#define SPARSEDET_LANES 8
#include "kernels/x86_bytes.h"

#include "kernels/int8_kernels.h"

namespace sparsedet {
namespace {

constexpr int kPairLimit = 128;  // times 255 is 32,640

struct Avx2Int8 : Int8Product {
  static constexpr int vectors = 2;  // 8 sums, 4 weights, ones, an activation and a product
  static SPARSEDET_INLINE V add_product(V sum, V weight, V x) {
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)x, (__m256i)weight);
    return (V)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

}  // namespace
extern const LowPrecisionKernels kernels_avx2_int8;
const LowPrecisionKernels kernels_avx2_int8 = int8_kernels<Avx2Int8>(supported, kPairLimit);
}  // namespace sparsedet
