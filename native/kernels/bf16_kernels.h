// The bfloat16 kernels, for any vector length; see kernels.h. Product is that of sparse_tile.h, with
// pairs in an element.
#pragma once
#include "kernels/row_kernels.h"

namespace sparsedet {
namespace {

typedef uint16_t Halves __attribute__((vector_size(L * 4)));

template <class Product, int R>
void sparse_bf16(const SparseArgs& a) {
  sparse_tiles<Product, R>(a);
}

void pool_bf16(const PoolArgs& a) {
  for (int x = 0; x < a.width; x += L) {
    // Nonnegative bfloat16 values have the order of their bits.
    Halves best = {};
    for (int r = 0; r < 3; r++)
      for (int t = 0; t < 3; t++) {
        const Halves v = (Halves)every_second(a.rows[0][r] + 2 * x + t);
        best = v > best ? v : best;
      }
    const V elements = (V)best;
    store(a.out + x, a.width - x < L ? keep(elements, a.width - x) : elements);
  }
}

template <class Product, int B>
SPARSEDET_INLINE void roi_block_bf16(const RoiArgs& a, int c) {
  V t[B][L];
#pragma GCC unroll 1
  for (int i = 0; i < L; i++) {
    V low[B] = {}, high[B] = {};
    for (int k = 0; k < a.count[i]; k++) {
      const V weight = broadcast(a.weights[i][k]);
      const float* cell = a.map + a.cells[i][k] * a.pitch + c;
#pragma GCC unroll 8
      for (int j = 0; j < B; j++) {
        const V elements = load(cell + j * L);
        low[j] += weight * Product::even(elements);
        high[j] += weight * Product::odd(elements);
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < B; j++) {
      if (a.bias) {
        low[j] += load(a.bias + c + j * L);
        high[j] += load(a.bias + a.pitch + c + j * L);
      }
      if (a.relu) low[j] = relu(low[j]), high[j] = relu(high[j]);
      t[j][i] = Product::join(low[j], high[j]);
    }
  }
  store_rois(a, c, t);
}

template <class Product>
void roi_bf16(const RoiArgs& a) {
  int c = 0;
  for (; c + 4 * L <= a.channels; c += 4 * L)
    roi_block_bf16<Product, 4>(a, c);
  for (; c < a.channels; c += L)
    roi_block_bf16<Product, 1>(a, c);
}

template <class Product>
void mean_bf16(const MeanArgs& a) {
  const V scale = broadcast(1.0f / static_cast<float>(a.cells));
  for (int l = 0; l < a.lanes; l += kVectors * L) {  // reads neighbours in memory together
    V low[kVectors] = {}, high[kVectors] = {};
    for (int i = 0; i < a.cells; i++)
#pragma GCC unroll 8
      for (int p = 0; p < kVectors; p++) {
        const V elements = load(a.source + i * a.cell_stride + l + p * L);
        low[p] += Product::even(elements);
        high[p] += Product::odd(elements);
      }
#pragma GCC unroll 8
    for (int p = 0; p < kVectors; p++) {
      store(a.out[0] + l + p * L, low[p] * scale);
      if (a.out[1]) store(a.out[1] + l + p * L, high[p] * scale);
    }
  }
}

// The table, for tiles of 4 or 5 rows.
template <class Product>
constexpr LowPrecisionKernels bf16_kernels(bool (*supported)()) {
  return {L,
          5,
          supported,
          {nullptr, nullptr, nullptr, nullptr, sparse_bf16<Product, 4>, sparse_bf16<Product, 5>,
           nullptr},
          pool_bf16,
          roi_bf16<Product>,
          mean_bf16<Product>,
          depthwise<Product>,
          sums<Product>,
          affine<Product>,
          low_precision_peak<Product, 4>,
          nullptr,
          nullptr};
}

}  // namespace
}  // namespace sparsedet
