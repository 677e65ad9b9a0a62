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

// Stores a vector of packed elements; lanes that do not exist are `outside`.
SPARSEDET_INLINE void store_elements(const SparseArgs& a, float* row, int p, V v) {
  if (a.runs) return store_runs(row, a.runs[p], v);
  if (a.valid[p] < L) {
    const I limit = a.valid[p] - (I){}, outside = __builtin_bit_cast(int32_t, a.outside) - (I){};
    v = iota() < limit ? v : (V)outside;
  }
  store(row + a.offset[p], v);
}

// Activates results, adds a residual that comes last, and brings them into steps of the output.
template <int P>
SPARSEDET_INLINE void to_steps(const SparseArgs& a, const V (&residual)[P], int channel,
                               V (&v)[P]) {
  activate(v, a.activation);
  if (a.residual && a.residual_last)
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
      v[p] = fused(byte_of(residual[p], channel), broadcast(a.residual_scale), v[p]);
#pragma GCC unroll 8
  for (int p = 0; p < P; p++)
    v[p] = fused(v[p], broadcast(a.out_scale), broadcast(a.out_zero));
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
    const bool late = a.residual_last && a.out_scale != 0;
    V residual[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
      residual[p] = a.residual ? load_pixels(a, a.residual + at, from + p) : (V){};
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
      if (a.residual && !late)
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
          sum[r][p] = fused(byte_of(residual[p], r), broadcast(a.residual_scale), sum[r][p]);
      if (a.out_scale != 0) to_steps(a, residual, r, sum[r]);
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      const V channels[4] = {sum[0][p], sum[1][p], sum[2][p], sum[3][p]};
      store_elements(a, a.out + at, from + p, Bytes::join(channels));
    }
    return;
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; r++) {
    if (row + r >= a.rows) return;
    activate(sum[r], a.activation);
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
      store_pixels(a, a.out + (row + r) * a.row_stride, from + p, sum[r][p]);
  }
}

}  // namespace
}  // namespace sparsedet
