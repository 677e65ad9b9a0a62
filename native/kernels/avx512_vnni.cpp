// int8 with AVX-512's dot product of four bytes (VNNI), whose int32 sums are exact.
#define SPARSEDET_LANES 16
#include "kernels/avx512_int8.h"

namespace sparsedet {
namespace {

constexpr int R = 4;  // a row tile is one output element, so that none waits for another one

struct VectorInt8 {
  static SPARSEDET_INLINE V weight(const float* p) { return broadcast_from(p); }
  static SPARSEDET_INLINE V add_product(V sum, V weight, V x) {
    return (V)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)weight);
  }
};

template <int P>
__attribute__((noinline)) void sparse_tile_int8(const SparseArgs& a) {
  const uint16_t *index = a.index, *counts = a.counts;
  const float* values = a.values;
  const char* prefetch = a.prefetch;
  V* partial = reinterpret_cast<V*>(a.partial);
  for (int tile = 0; tile < a.row_tiles; tile++, partial += R * kVectors) {
    if (prefetch)
      for (int i = 0; i < a.prefetch_rows; i++, prefetch += a.prefetch_stride)
        for (int p = 0; p < P; p++)
          __builtin_prefetch(prefetch + p * L * 4, 0, 2);
    if (a.last && a.residual)  // the one that is added next; past the end is harmless
      for (int p = 0; p < P; p++)
        __builtin_prefetch(a.residual + (tile + 1) * a.row_stride + first_pixel(a, p), 1, 3);
    V sum[R][P];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int p = 0; p < P; p++)
        sum[r][p] = a.first ? (V){} : partial[r * kVectors + p];
    row_masks<VectorInt8, R, P, 1>(reinterpret_cast<const char*>(a.panel), index, values, counts,
                                   sum);
    counts += (1 << R) - 1;
    if (!a.last) {
      store_partial(sum, partial);
      continue;
    }
    finish_element(a, tile, sum);
  }
}

void sparse(const SparseArgs& a) {
  with_vectors(a.vectors, [&]<int P>() { sparse_tile_int8<P>(a); });
}

void pool(const PoolArgs& a) {
  const V scale = broadcast(a.scale);
  for (int x = 0; x < a.width; x += L) {
    __m512i channels[4];
    for (int c = 0; c < 4; c++)
      channels[c] = whole(largest(a.rows[c], x) * scale);
    const V elements = join(channels);
    store(a.out + x, a.width - x < L ? keep(elements, a.width - x) : elements);
  }
}

// 16 elements (64 channels) of each of L RoIs.
template <bool INT8_MAP>
SPARSEDET_INLINE void roi_block(const RoiArgs& a, int c) {
  V t[1][L];
  I order;  // bytes() puts element 4 j + l into 32-bit lane j of 128-bit lane l
  for (int w = 0; w < L; w++)
    order[w] = w % 4 * 4 + w / 4;
  const V scale = broadcast(a.scale);
#pragma GCC unroll 1
  for (int i = 0; i < L; i++) {
    V sum[4] = {};
    for (int k = 0; k < a.count[i]; k++) {
      const V weight = broadcast(a.weights[i][k]);
      const float* cell = a.map + a.cells[i][k] * a.pitch + (INT8_MAP ? c : 4 * c);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        if constexpr (INT8_MAP) {
          sum[j] += weight * load_bytes(cell + j * 4);
        } else {
          sum[j] += weight * load(cell + j * L);
        }
      }
    }
    __m512i channels[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const V bias = a.bias ? load(a.bias + 4 * c + j * L) : (V){};
      channels[j] = whole(_mm512_fmadd_ps(sum[j], scale, bias));
    }
    t[0][i] = (V)_mm512_permutexvar_epi32((__m512i)order, bytes(channels));
  }
  store_rois(a, c, t);
}

void roi(const RoiArgs& a) {
  for (int c = 0; c < a.channels; c += L) {
    if (a.int8_map)
      roi_block<true>(a, c);
    else
      roi_block<false>(a, c);
  }
}

void mean(const MeanArgs& a) {
  const V scale = broadcast(a.scale * (1.0f / static_cast<float>(a.cells)));
  for (int l = 0; l < a.lanes; l += kVectors * L) {  // reads neighbours in memory together
    I sum[4][kVectors] = {};
    for (int i = 0; i < a.cells; i++)
#pragma GCC unroll 8
      for (int p = 0; p < kVectors; p++) {
        const I elements = (I)load(a.source + i * a.cell_stride + l + p * L);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++)
          sum[c][p] += elements >> 8 * c & 255;
      }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++)
      if (a.out[c])
#pragma GCC unroll 8
        for (int p = 0; p < kVectors; p++)
          store(a.out[c] + l + p * L, _mm512_cvtepi32_ps((__m512i)sum[c][p]) * scale);
  }
}

bool supported() {
  return __builtin_cpu_supports("avx512vnni");
}

}  // namespace
extern const LowPrecisionKernels kernels_avx512_int8;
const LowPrecisionKernels kernels_avx512_int8 = {
    L,
    R,
    supported,
    {nullptr, nullptr, nullptr, nullptr, sparse, nullptr, nullptr},
    pool,
    roi,
    mean,
    nullptr,
    nullptr,
    nullptr,
    low_precision_peak<VectorInt8, 8>};
}  // namespace sparsedet
