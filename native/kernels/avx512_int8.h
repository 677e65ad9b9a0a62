// int8 results with AVX-512: from int32 sums to bytes of packed elements, or to float32.
#pragma once
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 in its own header
#endif
#include <immintrin.h>

#include "kernels/sparse_tile.h"

namespace sparsedet {
namespace {

// Rounds to int32 and limits to 255; join() then saturates at zero.
SPARSEDET_INLINE __m512i whole(V v) {
  return _mm512_cvtps_epi32(_mm512_min_ps(v, broadcast(255.0f)));
}

SPARSEDET_INLINE V byte_of(V element, int channel) {
  return _mm512_cvtepi32_ps((__m512i)((I)element >> 8 * channel & 255));
}

SPARSEDET_INLINE V load_bytes(const float* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
}

// Each 128 bits of the result: four values of v[0], of v[1], of v[2] and of v[3], as bytes.
SPARSEDET_INLINE __m512i bytes(const __m512i (&v)[4]) {
  return _mm512_packus_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
}

// Four channels of the same pixels to packed elements.
SPARSEDET_INLINE V join(const __m512i (&channels)[4]) {
  const __m512i order =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return (V)_mm512_shuffle_epi8(bytes(channels), order);
}

// Finishes the int32 sums of the four channels of an element, and stores them.
template <int P>
SPARSEDET_INLINE void finish_element(const SparseArgs& a, int element, V (&sum)[4][P]) {
  const int row = 4 * element;
#pragma GCC unroll 4
  for (int r = 0; r < 4; r++) {
    const V scale = broadcast(a.scale[row + r]), bias = broadcast(a.bias[row + r]);
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
      sum[r][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)sum[r][p]), scale, bias);
  }
  if (a.packed_output) {
    if (element >= a.rows) return;
    const ptrdiff_t at = element * a.row_stride;
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      __m512i channels[4];
      const V residual = a.residual ? load_pixels(a, a.residual + at, p) : (V){};
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++) {
        V v = sum[r][p];
        if (a.residual) v = _mm512_fmadd_ps(byte_of(residual, r), broadcast(a.residual_scale), v);
        channels[r] = whole(v);
      }
      store_pixels(a, a.out + at, p, join(channels));
    }
    return;
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; r++) {
    if (row + r >= a.rows) return;
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      V v = a.activation == Activation::relu ? relu(sum[r][p]) : sum[r][p];
      store_pixels(a, a.out + (row + r) * a.row_stride, p, v);
    }
  }
}

}  // namespace
}  // namespace sparsedet
