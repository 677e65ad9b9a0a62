// The int8 kernels, for any vector length; see kernels.h. A source file includes the header that has
// Bytes (see int8_results.h) and then this one, and defines a Product of sparse_tile.h on the base
// Int8Product.
#pragma once
#include "kernels/int8_results.h"

namespace sparsedet {
namespace {

constexpr int kR = 4;  // a row tile is one output element, so that none waits for another one

struct Int8Product {
  // Vectors of pixels at a time, as kR times as many sums must stay in registers.
  static constexpr int vectors = kVectors;
  // Whether sums start from what start(values, counts, sums) computes from the weights of a row tile.
  static constexpr bool from_start = false;
  static SPARSEDET_INLINE V weight(const float* p) { return broadcast_from(p); }
};

// One row tile: the vectors from FROM on, Product::vectors at a time. Leaves index and values behind
// the row tile.
template <class Product, int P, int FROM = 0>
SPARSEDET_INLINE void row_tile_int8(const SparseArgs& a, int tile, const uint16_t*& index,
                                    const float*& values, const uint16_t* counts, V* partial,
                                    const I (&start)[kR]) {
  constexpr int N = P - FROM < Product::vectors ? P - FROM : Product::vectors;
  const uint16_t* own_index = index;
  const float* own_values = values;
  V sum[kR][N];
#pragma GCC unroll 8
  for (int r = 0; r < kR; r++)
#pragma GCC unroll 8
    for (int p = 0; p < N; p++) {
      sum[r][p] = a.first ? (V){} : partial[r * kVectors + FROM + p];
      if constexpr (Product::from_start) sum[r][p] = (V)((I)sum[r][p] + start[r]);
    }
  row_masks<Product, kR, N, 1>(reinterpret_cast<const char*>(a.panel + FROM * L), own_index,
                               own_values, counts, sum);
  if (a.last)
    finish_element<Bytes>(a, tile, FROM, sum);
  else
    store_partial(sum, partial + FROM);
  if constexpr (FROM + N < P) {
    row_tile_int8<Product, P, FROM + N>(a, tile, index, values, counts, partial, start);
  } else {
    index = own_index;
    values = own_values;
  }
}

template <class Product, int P>
__attribute__((noinline)) void sparse_tile_int8(const SparseArgs& a) {
  const uint16_t *index = a.index, *counts = a.counts;
  const float* values = a.values;
  const char* prefetch = a.prefetch;
  V* partial = reinterpret_cast<V*>(a.partial);
  for (int tile = 0; tile < a.row_tiles; tile++, partial += kR * kVectors) {
    if (prefetch)
      for (int i = 0; i < a.prefetch_rows; i++, prefetch += a.prefetch_stride)
        for (int p = 0; p < P; p++)
          __builtin_prefetch(prefetch + p * L * 4, 0, 2);
    if (a.last && a.residual)  // the one that is added next; past the end is harmless
      for (int p = 0; p < P; p++)
        __builtin_prefetch(a.residual + (tile + 1) * a.row_stride + first_pixel(a, p), 1, 3);
    I start[kR] = {};
    if constexpr (Product::from_start) Product::start(values, counts, start);
    row_tile_int8<Product, P>(a, tile, index, values, counts, partial, start);
    counts += (1 << kR) - 1;
  }
}

template <class Product>
void sparse_int8(const SparseArgs& a) {
  with_vectors(a.vectors, [&]<int P>() { sparse_tile_int8<Product, P>(a); });
}

void pool_int8(const PoolArgs& a) {
  const V scale = broadcast(a.scale);
  for (int x = 0; x < a.width; x += L) {
    V channels[4];
    for (int c = 0; c < 4; c++)
      channels[c] = largest(a.rows[c], x) * scale;
    const V elements = Bytes::join(channels);
    store(a.out + x, a.width - x < L ? keep(elements, a.width - x) : elements);
  }
}

// L elements (4 L channels) of each of L RoIs.
template <bool INT8_MAP>
SPARSEDET_INLINE void roi_block_int8(const RoiArgs& a, int c) {
  V t[1][L];
  const V scale = broadcast(a.scale);
#pragma GCC unroll 1
  for (int i = 0; i < L; i++) {
    V sum[4] = {};
    for (int k = 0; k < a.count[i]; k++) {
      const V weight = broadcast(a.weights[i][k]);
      const float* cell = a.map + a.cells[i][k] * a.pitch + (INT8_MAP ? c : 4 * c);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++)
        sum[j] += weight * (INT8_MAP ? Bytes::load_bytes(cell + j * (L / 4)) : load(cell + j * L));
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const V bias = a.bias ? load(a.bias + 4 * c + j * L) : (V){};
      sum[j] = fused(sum[j], scale, bias);
    }
    t[0][i] = Bytes::join_line(sum);
  }
  store_rois(a, c, t);
}

void roi_int8(const RoiArgs& a) {
  for (int c = 0; c < a.channels; c += L) {
    if (a.int8_map)
      roi_block_int8<true>(a, c);
    else
      roi_block_int8<false>(a, c);
  }
}

void mean_int8(const MeanArgs& a) {
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
          store(a.out[c] + l + p * L, __builtin_convertvector(sum[c][p], V) * scale);
  }
}

void quantise(const QuantiseArgs& a) {
  const V factor = broadcast(a.factor), offset = broadcast(a.offset);
  const I outside = __builtin_bit_cast(int32_t, a.outside) - (I){};
  for (int x = 0; x < a.width; x += L) {
    V channels[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++)
      channels[c] = fused(load(a.source[c] + x), factor, offset);
    const I limit = a.width - x - (I){};
    const V elements = Bytes::join(channels);
    store(a.out + x, a.width - x < L ? (iota() < limit ? elements : (V)outside) : elements);
  }
}

void dequantise(const DequantiseArgs& a) {
  const V scale = broadcast(a.scale);
  for (int x = 0; x < a.width; x += L) {
    const I elements = (I)load(a.source + x);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      if (!a.out[c]) continue;
      const V v = __builtin_convertvector((elements >> 8 * c & 255) - a.zero_point, V) * scale;
      store(a.out[c] + x, a.width - x < L ? keep(v, a.width - x) : v);
    }
  }
}

// The table. pair_limit: see LowPrecisionKernels.
template <class Product>
constexpr LowPrecisionKernels int8_kernels(bool (*supported)(), int pair_limit = 0) {
  return {L,
          kR,
          supported,
          {nullptr, nullptr, nullptr, nullptr, sparse_int8<Product>, nullptr, nullptr},
          pool_int8,
          roi_int8,
          mean_int8,
          nullptr,
          nullptr,
          nullptr,
          low_precision_peak<Product, 8>,
          quantise,
          dequantise,
          pair_limit};
}

}  // namespace
}  // namespace sparsedet
