// int8 results, for any vector length: from int32 sums to bytes of packed elements, or to float32.
// Each step is rounded once, so that all instruction sets give equal bits.
//
// Bytes says how vectors become bytes of packed elements, as x86_bytes.h does: join(channels) makes
// elements of four channels of the same pixels, join_line(values) of four vectors of neighbouring
// channels, load_bytes() reads neighbouring bytes.
#pragma once
#include "kernels/sparse_tile.h"

namespace sparsedet {
namespace {

SPARSEDET_INLINE V byte_of(V element, int channel) {
  return __builtin_convertvector((I)element >> 8 * channel & 255, V);
}

// Finishes the int32 sums of the four channels of an element for the vectors from `from` on, and
// stores them.
template <class Bytes, int P>
SPARSEDET_INLINE void finish_element(const SparseArgs& a, int element, int from, V (&sum)[4][P]) {
  const int row = 4 * element;
#pragma GCC unroll 4
  for (int r = 0; r < 4; r++) {
    const V scale = broadcast(a.scale[row + r]), bias = broadcast(a.bias[row + r]);
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
      sum[r][p] = fused(__builtin_convertvector((I)sum[r][p], V), scale, bias);
  }
  if (a.packed_output) {
    if (element >= a.rows) return;
    const ptrdiff_t at = element * a.row_stride;
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      V channels[4];
      const V residual = a.residual ? load_pixels(a, a.residual + at, from + p) : (V){};
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++) {
        channels[r] = sum[r][p];
        if (a.residual)
          channels[r] = fused(byte_of(residual, r), broadcast(a.residual_scale), channels[r]);
      }
      store_pixels(a, a.out + at, from + p, Bytes::join(channels));
    }
    return;
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; r++) {
    if (row + r >= a.rows) return;
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      V v = a.activation == Activation::relu ? relu(sum[r][p]) : sum[r][p];
      store_pixels(a, a.out + (row + r) * a.row_stride, from + p, v);
    }
  }
}

}  // namespace
}  // namespace sparsedet
