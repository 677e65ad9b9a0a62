// The sparse product, for any vector length and both kinds of activations; see kernels.h.
//
// Type says what a word is: Float32 (kernels_vector.h), bfloat16 pairs or four bytes. It has weight,
// which reads one into all lanes, and add_product; with `words` also even, odd and join.
#pragma once
#include "kernels/vector.h"

namespace sparsedet {
namespace {

// The columns of pattern PATTERN, then those of the next patterns: one loop each, unrolled at
// compile time over the pattern's rows and the tile's vectors.
template <class Type, int G, int P, int PATTERN>
SPARSEDET_INLINE void patterns(const char* panel, const uint16_t*& index, const float*& values,
                               const uint16_t* counts, V (&sum)[G][P]) {
  constexpr int n = __builtin_popcount(PATTERN);
#pragma GCC unroll 1
  for (int left = counts[PATTERN - 1]; left > 0; left--) {
    const V* x = reinterpret_cast<const V*>(panel + static_cast<size_t>(*index++) * 8);
    V w[n];
#pragma GCC unroll 8
    for (int j = 0; j < n; j++)
      w[j] = Type::weight(values + j);
    values += n;
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      V v = x[p];
      if constexpr (n > 1) __asm__("" : SPARSEDET_REGISTER(v));  // else it is loaded for each row
      int j = 0;
#pragma GCC unroll 8
      for (int g = 0; g < G; g++)
        if (PATTERN >> g & 1) sum[g][p] = Type::add_product(sum[g][p], w[j++], v);
    }
  }
  if constexpr (PATTERN + 1 < 1 << G)
    patterns<Type, G, P, PATTERN + 1>(panel, index, values, counts, sum);
}

template <class Type, int G, int P>
__attribute__((noinline)) void sparse_tile(const SparseArgs& a) {
  const uint16_t *index = a.index, *counts = a.counts;
  const float* values = a.values;
  const char* prefetch = a.prefetch;
  V* partial = reinterpret_cast<V*>(a.partial);
  for (int group = 0; group < a.groups; group++, partial += G * kVectors) {
    const int row = group * G;
    if (prefetch)
      for (int i = 0; i < a.prefetch_rows; i++, prefetch += a.prefetch_stride)
        for (int p = 0; p < P; p++)
          __builtin_prefetch(prefetch + p * L * 4, 0, 2);
    // The residual that is added next; past the end is harmless.
    const bool pairs = Type::words && a.words, odd = group & 1;
    if (a.last && a.residual && !(pairs && odd)) {
      const int next = pairs ? group / 2 * G : row + G;
      for (int g = 0; g < G; g++)
        for (int p = 0; p < P; p++)
          __builtin_prefetch(a.residual + (next + g) * a.row_stride + a.offset[p], 1, 3);
    }
    V sum[G][P];
#pragma GCC unroll 8
    for (int g = 0; g < G; g++)
#pragma GCC unroll 8
      for (int p = 0; p < P; p++)
        sum[g][p] = a.first ? broadcast(a.bias[row + g]) : partial[g * kVectors + p];
    patterns<Type, G, P, 1>(reinterpret_cast<const char*>(a.panel), index, values, counts, sum);
    counts += (1 << G) - 1;
    if (!a.last || (pairs && !odd)) {  // even channels wait for the odd ones
#pragma GCC unroll 8
      for (int g = 0; g < G; g++)
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
          partial[g * kVectors + p] = sum[g][p];
      continue;
    }
    if constexpr (Type::words)
      if (a.words) {
        const V* even = partial - G * kVectors;
#pragma GCC unroll 8
        for (int g = 0; g < G; g++) {
          const int at_row = group / 2 * G + g;
          if (at_row >= a.rows) break;
          const ptrdiff_t at = at_row * a.row_stride;
#pragma GCC unroll 8
          for (int p = 0; p < P; p++) {
            V low = even[g * kVectors + p], high = sum[g][p];
            if (a.residual) {
              const V words = load(a.residual + at + a.offset[p]);
              low += Type::even(words);
              high += Type::odd(words);
            }
            if (a.relu) low = relu(low), high = relu(high);
            V v = Type::join(low, high);
            if (a.valid[p] < L) v = keep(v, a.valid[p]);
            store(a.out + at + a.offset[p], v);
          }
        }
        continue;
      }
#pragma GCC unroll 8
    for (int g = 0; g < G; g++) {
      if (row + g >= a.rows) break;
      const ptrdiff_t at = (row + g) * a.row_stride;
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) {
        V v = sum[g][p];
        if (a.residual) v += load(a.residual + at + a.offset[p]);
        if (a.relu) v = relu(v);
        if (a.valid[p] < L) v = keep(v, a.valid[p]);
        store(a.out + at + a.offset[p], v);
      }
    }
  }
}

template <class Type, int G>
SPARSEDET_INLINE void sparse_tiles(const SparseArgs& a) {
  switch (a.vectors) {
    case 1:
      return sparse_tile<Type, G, 1>(a);
    case 2:
      return sparse_tile<Type, G, 2>(a);
    case 3:
      return sparse_tile<Type, G, 3>(a);
    default:
      return sparse_tile<Type, G, 4>(a);
  }
}

// The peak of Type's product, which does FLOPS operations a lane; see PeakArgs.
template <class Type, int FLOPS>
int64_t word_peak(const PeakArgs& a) {
  constexpr int chains = 12;
  V sum[chains];  // unequal, or the compiler would keep one of them
  for (int i = 0; i < chains; i++)
    sum[i] = broadcast(static_cast<float>(i));
  V x = {}, y = {};
  for (int64_t round = 0; round < a.rounds; round++) {
    __asm__ volatile("" : SPARSEDET_REGISTER(x), SPARSEDET_REGISTER(y));
#pragma GCC unroll 16
    for (int i = 0; i < chains; i++)
      sum[i] = Type::add_product(sum[i], x, y);
  }
  for (int i = 0; i < chains; i++)
    for (int k = 0; k < L; k++)
      *a.sink += sum[i][k];
  return a.rounds * chains * L * FLOPS;
}

}  // namespace
}  // namespace sparsedet
