// int8 with AVX-512's dot product of four bytes (VNNI), whose int32 sums are exact.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 in its own header
#include <immintrin.h>
#define SPARSEDET_LANES 16
#include "kernels/sparse_tile.h"

namespace sparsedet {
namespace {

constexpr int R = 4;  // a row tile is one output element, so that none waits for another one

struct VectorInt8 {
  static SPARSEDET_INLINE V weight(const float* p) { return broadcast_from(p); }
  static SPARSEDET_INLINE V add_product(V sum, V weight, V x) {
    return (V)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)weight);
  }
};

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

template <int P>
__attribute__((noinline)) void sparse_tile_int8(const SparseArgs& a) {
  const uint16_t *index = a.index, *counts = a.counts;
  const float* values = a.values;
  const char* prefetch = a.prefetch;
  V* partial = reinterpret_cast<V*>(a.partial);
  for (int tile = 0; tile < a.row_tiles; tile++, partial += R * kVectors) {
    const int row = tile * R;
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
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const V scale = broadcast(a.scale[row + r]), bias = broadcast(a.bias[row + r]);
#pragma GCC unroll 8
      for (int p = 0; p < P; p++)
        sum[r][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)sum[r][p]), scale, bias);
    }
    if (a.packed_output) {
      if (tile >= a.rows) break;
      const ptrdiff_t at = tile * a.row_stride;
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) {
        __m512i channels[4];
        const V residual = a.residual ? load_pixels(a, a.residual + at, p) : (V){};
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
          V v = sum[r][p];
          if (a.residual) v = _mm512_fmadd_ps(byte_of(residual, r), broadcast(a.residual_scale), v);
          channels[r] = whole(v);
        }
        store_pixels(a, a.out + at, p, join(channels));
      }
      continue;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      if (row + r >= a.rows) break;
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) {
        V v = a.activation == Activation::relu ? relu(sum[r][p]) : sum[r][p];
        store_pixels(a, a.out + (row + r) * a.row_stride, p, v);
      }
    }
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
