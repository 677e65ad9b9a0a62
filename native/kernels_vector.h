// The kernels in GCC vector extensions, for any vector length. A source file of one
// instruction set defines SPARSEDET_LANES and includes this once; everything is in an
// unnamed namespace and uses no library code, so that nothing compiled with that file's
// flags can be picked by the linker for another file.
#include "kernels.h"

namespace sparsedet {
namespace {

constexpr int L = SPARSEDET_LANES;
typedef float V __attribute__((vector_size(L * 4)));
typedef float VU __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef int32_t I __attribute__((vector_size(L * 4)));
#define SPARSEDET_INLINE inline __attribute__((always_inline))

SPARSEDET_INLINE V broadcast(float x) { return x - (V){}; }
SPARSEDET_INLINE V load(const float* p) { return *reinterpret_cast<const VU*>(p); }
SPARSEDET_INLINE void store(float* p, V v) { *reinterpret_cast<VU*>(p) = v; }
SPARSEDET_INLINE V relu(V v) { return v > 0 ? v : (V){}; }

SPARSEDET_INLINE I iota() {
  I i;
  for (int k = 0; k < L; k++) i[k] = k;
  return i;
}

// Lanes from `valid` on become zero.
SPARSEDET_INLINE V keep(V v, int valid) {
  const I limit = valid - (I){};
  return iota() < limit ? v : (V){};
}

// The columns of pattern PATTERN, then those of the next patterns: one loop each, unrolled at
// compile time over the pattern's rows and the tile's vectors.
template <int G, int P, int PATTERN>
SPARSEDET_INLINE void patterns(const char* panel, const uint16_t*& index, const float*& values,
                               const uint16_t* counts, V (&sum)[G][P]) {
  constexpr int n = __builtin_popcount(PATTERN);
#pragma GCC unroll 1
  for (int left = counts[PATTERN - 1]; left > 0; left--) {
    const V* x = reinterpret_cast<const V*>(panel + static_cast<size_t>(*index++) * 8);
    V w[n];
#pragma GCC unroll 8
    for (int j = 0; j < n; j++) w[j] = broadcast(values[j]);
    values += n;
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      const V v = x[p];
      int j = 0;
#pragma GCC unroll 8
      for (int g = 0; g < G; g++)
        if (PATTERN >> g & 1) sum[g][p] += w[j++] * v;
    }
  }
  if constexpr (PATTERN + 1 < 1 << G)
    patterns<G, P, PATTERN + 1>(panel, index, values, counts, sum);
}

template <int G, int P>
__attribute__((noinline)) void sparse_tile(const SparseArgs& a) {
  const uint16_t *index = a.index, *counts = a.counts;
  const float* values = a.values;
  const char* prefetch = a.prefetch;
  V* partial = reinterpret_cast<V*>(a.partial);
  for (int group = 0; group < a.groups; group++, partial += G * kVectors) {
    const int row = group * G;
    if (prefetch)
      for (int i = 0; i < a.prefetch_rows; i++, prefetch += a.prefetch_stride)
        for (int p = 0; p < P; p++) __builtin_prefetch(prefetch + p * L * 4, 0, 2);
    if (a.last && a.residual)  // the next group's residual; past the end is harmless
      for (int g = 0; g < G; g++)
        for (int p = 0; p < P; p++)
          __builtin_prefetch(a.residual + (row + G + g) * a.row_stride + a.offset[p], 1, 3);
    V sum[G][P];
#pragma GCC unroll 8
    for (int g = 0; g < G; g++)
#pragma GCC unroll 8
      for (int p = 0; p < P; p++)
        sum[g][p] = a.first ? broadcast(a.bias[row + g]) : partial[g * kVectors + p];
    patterns<G, P, 1>(reinterpret_cast<const char*>(a.panel), index, values, counts, sum);
    counts += (1 << G) - 1;
    if (!a.last) {
#pragma GCC unroll 8
      for (int g = 0; g < G; g++)
#pragma GCC unroll 8
        for (int p = 0; p < P; p++) partial[g * kVectors + p] = sum[g][p];
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

template <int G>
void sparse(const SparseArgs& a) {
  switch (a.vectors) {
    case 1: return sparse_tile<G, 1>(a);
    case 2: return sparse_tile<G, 2>(a);
    case 3: return sparse_tile<G, 3>(a);
    default: return sparse_tile<G, 4>(a);
  }
}

SPARSEDET_INLINE V every_second(const float* p) {
  return __builtin_shuffle(load(p), load(p + L), iota() * 2);
}

template <int P>
SPARSEDET_INLINE void pack_vectors(const PackArgs& a) {
  V* to = reinterpret_cast<V*>(a.panel);
  ptrdiff_t at = 0;
  if (a.stride == 1) {
    for (int c = 0; c < a.count; c++, at += a.channel_stride, to += kVectors)
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) to[p] = load(a.source[p] + at);
  } else {
    for (int c = 0; c < a.count; c++, at += a.channel_stride, to += kVectors)
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) to[p] = every_second(a.source[p] + at);
  }
}

void pack(const PackArgs& a) {
  switch (a.vectors) {
    case 1: return pack_vectors<1>(a);
    case 2: return pack_vectors<2>(a);
    case 3: return pack_vectors<3>(a);
    default: return pack_vectors<4>(a);
  }
}

SPARSEDET_INLINE V larger(V a, V b) { return a > b ? a : b; }

void pool(const PoolArgs& a) {
  for (int x = 0; x < a.width; x += L) {
    V best = every_second(a.rows[0] + 2 * x);
    for (int r = 0; r < 3; r++)
      for (int t = 0; t < 3; t++) best = larger(best, every_second(a.rows[r] + 2 * x + t));
    store(a.out + x, a.width - x < L ? keep(best, a.width - x) : best);
  }
}

// Transpose an L x L tile held in L vectors: log2(L) rounds of pairwise exchanges.
template <int STEP>
SPARSEDET_INLINE void exchange(V (&t)[L]) {
  I low, high;
  for (int k = 0; k < L; k++) {
    low[k] = k & STEP ? (k ^ STEP) + L : k;
    high[k] = k & STEP ? k + L : k ^ STEP;
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; i++) {
    if (i & STEP) continue;
    const V a = t[i], b = t[i | STEP];
    t[i] = __builtin_shuffle(a, b, low);
    t[i | STEP] = __builtin_shuffle(a, b, high);
  }
  if constexpr (STEP * 2 < L) exchange<STEP * 2>(t);
}

void transpose(const TransposeArgs& a) {
  for (int x = 0; x < a.pixels; x += L)
    for (int c = 0; c < a.channels; c += L) {
      V t[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; i++)
        t[i] = c + i < a.channels ? load(a.source + (c + i) * a.channel_stride + x) : (V){};
      exchange<1>(t);
      for (int i = 0; i < L && x + i < a.pixels; i++) store(a.out + (x + i) * a.pitch + c, t[i]);
    }
}

void roi(const RoiArgs& a) {
  for (int c = 0; c < a.channels; c += L) {
    V t[L];
#pragma GCC unroll 1
    for (int i = 0; i < L; i++) {
      V sum = {};
      const int32_t* cell = a.cells[i];
      const float* weight = a.weights[i];
      for (int k = 0; k < a.count[i]; k++)
        sum += broadcast(weight[k]) * load(a.map + cell[k] * a.pitch + c);
      if (a.bias) sum += load(a.bias + c);
      t[i] = a.relu ? relu(sum) : sum;
    }
    exchange<1>(t);
#pragma GCC unroll 16
    for (int i = 0; i < L; i++) {
      if (c + i >= a.channels) break;
      store(a.out + (c + i) * a.channel_stride, t[i]);
    }
  }
}

}  // namespace
}  // namespace sparsedet
