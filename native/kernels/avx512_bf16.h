// Pairs of bfloat16 with AVX-512's dot product (AVX512_BF16), which flushes denormals to zero.
#pragma once
#include <immintrin.h>

#include "kernels/row_kernels.h"

namespace sparsedet {
namespace {

struct VectorBfloat16 {
  static constexpr bool packed = true;

  static SPARSEDET_INLINE V weight(const float* p) { return broadcast_from(p); }
  static SPARSEDET_INLINE V add_product(V sum, V weight, V x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)weight);
  }
  static SPARSEDET_INLINE V even(V elements) { return (V)((I)elements << 16); }
  static SPARSEDET_INLINE V odd(V elements) { return (V)((I)elements & -65536); }
  // Rounds to nearest even.
  static SPARSEDET_INLINE V join(V low, V high) {
    I order;  // 16-bit halves k and k + 16 side by side
    for (int k = 0; k < L; k++)
      order[k] = k | (k + L) << 16;
    return (V)_mm512_permutexvar_epi16((__m512i)order, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
};

}  // namespace
}  // namespace sparsedet
