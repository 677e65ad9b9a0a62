// The sparse product of float32 and bfloat16, for any vector length; int8 shares its parts. See
// kernels.h.
//
// Product says how one element is multiplied, as VectorFloat32 (vector_kernels.h) does: weight()
// reads a weight into all lanes, add_product() adds weight times activation. Where `packed` is
// true, even(), odd() and join() take elements apart and make them.
#pragma once
#include "kernels/vector.h"

namespace sparsedet {
namespace {

// The columns of row mask MASK, then those of the next masks: one loop for each mask, unrolled at
// compile time over the rows of the mask and the vectors of the tile.
template <class Product, int R, int P, int MASK>
SPARSEDET_INLINE void row_masks(const char* panel, const uint16_t*& index, const float*& values,
                                const uint16_t* counts, V (&sum)[R][P]) {
  constexpr int n = __builtin_popcount(MASK);
#pragma GCC unroll 1
  for (int left = counts[MASK - 1]; left > 0; left--) {
    const V* x = reinterpret_cast<const V*>(panel + static_cast<size_t>(*index++) * 8);
    V w[n];
#pragma GCC unroll 8
    for (int j = 0; j < n; j++)
      w[j] = Product::weight(values + j);
    values += n;
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      V v = x[p];
      // Without this the compiler folds the load into the multiply-add of each row.
      if constexpr (n > 1) __asm__("" : SPARSEDET_REGISTER(v));
      int j = 0;
#pragma GCC unroll 8
      for (int r = 0; r < R; r++)
        if (MASK >> r & 1) sum[r][p] = Product::add_product(sum[r][p], w[j++], v);
    }
  }
  if constexpr (MASK + 1 < 1 << R)
    row_masks<Product, R, P, MASK + 1>(panel, index, values, counts, sum);
}

template <int R, int P>
SPARSEDET_INLINE void store_partial(const V (&sum)[R][P], V* partial) {
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
      partial[r * kVectors + p] = sum[r][p];
}

template <class Product, int P>
SPARSEDET_INLINE void add_pairs(const SparseArgs& a, const float* residual, V (&low)[P],
                                V (&high)[P]) {
#pragma GCC unroll 8
  for (int p = 0; p < P; p++) {
    const V elements = load_pixels(a, residual, p);
    low[p] += Product::even(elements);
    high[p] += Product::odd(elements);
  }
}

// Finishes the sums of the even and of the odd channels of a row of pairs, and stores them.
template <class Product, int P>
SPARSEDET_INLINE void finish_pairs(const SparseArgs& a, int row, V (&low)[P], V (&high)[P]) {
  const ptrdiff_t at = row * a.row_stride;
  if (a.residual && !a.residual_last) add_pairs<Product>(a, a.residual + at, low, high);
  activate(low, a.activation);
  activate(high, a.activation);
  if (a.residual && a.residual_last) add_pairs<Product>(a, a.residual + at, low, high);
#pragma GCC unroll 8
  for (int p = 0; p < P; p++)
    store_pixels(a, a.out + at, p, Product::join(low[p], high[p]));
}

// Finishes the sums of a row of float32 results, and stores them.
template <int P>
SPARSEDET_INLINE void finish_row(const SparseArgs& a, int row, V (&v)[P]) {
  const ptrdiff_t at = row * a.row_stride;
  if (a.residual && !a.residual_last)
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
      v[p] += load_pixels(a, a.residual + at, p);
  activate(v, a.activation);
  if (a.residual && a.residual_last)
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
      v[p] += load_pixels(a, a.residual + at, p);
#pragma GCC unroll 8
  for (int p = 0; p < P; p++)
    store_pixels(a, a.out + at, p, v[p]);
}

template <class Product, int R, int P>
__attribute__((noinline)) void sparse_tile(const SparseArgs& a) {
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
    // The residual that is added next; prefetching past the end is harmless.
    const bool pairs = Product::packed && a.packed_output, odd = tile & 1;
    if (a.last && a.residual && !(pairs && odd)) {
      const int next = pairs ? tile / 2 * R : row + R;
      for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++)
          __builtin_prefetch(a.residual + (next + r) * a.row_stride + first_pixel(a, p), 1, 3);
    }
    V sum[R][P];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int p = 0; p < P; p++)
        sum[r][p] = a.first ? broadcast(a.bias[row + r]) : partial[r * kVectors + p];
    row_masks<Product, R, P, 1>(reinterpret_cast<const char*>(a.panel), index, values, counts, sum);
    counts += (1 << R) - 1;
    if (!a.last || (pairs && !odd)) {  // even channels wait for the odd ones
      store_partial(sum, partial);
      continue;
    }
    if constexpr (Product::packed)
      if (a.packed_output) {
        const V* even = partial - R * kVectors;
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
          const int out_row = tile / 2 * R + r;
          if (out_row >= a.rows) break;
          V low[P];
#pragma GCC unroll 8
          for (int p = 0; p < P; p++)
            low[p] = even[r * kVectors + p];
          finish_pairs<Product>(a, out_row, low, sum[r]);
        }
        continue;
      }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      if (row + r >= a.rows) break;
      finish_row(a, row + r, sum[r]);
    }
  }
}

template <class Product, int R>
SPARSEDET_INLINE void sparse_tiles(const SparseArgs& a) {
  with_vectors(a.vectors, [&]<int P>() { sparse_tile<Product, R, P>(a); });
}

// The peak of a product that does FLOPS operations in each lane; see PeakArgs.
template <class Product, int FLOPS>
int64_t low_precision_peak(const PeakArgs& a) {
  constexpr int chains = 12;
  V sum[chains];  // different values, or the compiler would keep one of them
  for (int i = 0; i < chains; i++)
    sum[i] = broadcast(static_cast<float>(i));
  V x = {}, y = {};
  for (int64_t round = 0; round < a.rounds; round++) {
    __asm__ volatile("" : SPARSEDET_REGISTER(x), SPARSEDET_REGISTER(y));
#pragma GCC unroll 16
    for (int i = 0; i < chains; i++)
      sum[i] = Product::add_product(sum[i], x, y);
  }
  for (int i = 0; i < chains; i++)
    for (int k = 0; k < L; k++)
      *a.sink += sum[i][k];
  return a.rounds * chains * L * FLOPS;
}

}  // namespace
}  // namespace sparsedet
