// int8 with AVX-512's dot product of four bytes (VNNI), whose int32 sums are exact.
#define SPARSEDET_LANES 16
#include "kernels/x86_bytes.h"

#include "kernels/int8_kernels.h"

namespace sparsedet {
namespace {

struct Avx512Int8 : Int8Product {
  static SPARSEDET_INLINE V add_product(V sum, V weight, V x) {
    return (V)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)weight);
  }
};

bool supported() {
  return __builtin_cpu_supports("avx512vnni");
}

}  // namespace
extern const LowPrecisionKernels kernels_avx512_int8;
const LowPrecisionKernels kernels_avx512_int8 = int8_kernels<Avx512Int8>(supported);
}  // namespace sparsedet
