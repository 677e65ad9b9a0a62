// The float32 kernels, for any vector length; see vector.h for how a source file uses this.
#pragma once
#include "sparse_tile.h"

namespace sparsedet {
namespace {

struct Float32 {
  static constexpr bool words = false;
  static SPARSEDET_INLINE V add_product(V sum, V weight, V x) { return sum + weight * x; }
};

template <int G>
void sparse(const SparseArgs& a) {
  sparse_tiles<Float32, G>(a);
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

void pool(const PoolArgs& a) {
  for (int x = 0; x < a.width; x += L) {
    V best = every_second(a.rows[0] + 2 * x);
    for (int r = 0; r < 3; r++)
      for (int t = 0; t < 3; t++) best = larger(best, every_second(a.rows[r] + 2 * x + t));
    store(a.out + x, a.width - x < L ? keep(best, a.width - x) : best);
  }
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

void mean(const MeanArgs& a) {
  const V scale = broadcast(1.0f / static_cast<float>(a.cells));
  for (int l = 0; l < a.lanes; l += L) {
    V sum = {};
    for (int i = 0; i < a.cells; i++) sum += load(a.source + i * a.cell_stride + l);
    store(a.out + l, sum * scale);
  }
}

int64_t peak(const PeakArgs& a) {
  constexpr int chains = 12;  // hides the latency of two units
  V sum[chains];  // unequal, or the compiler would keep one of them
  for (int i = 0; i < chains; i++) sum[i] = broadcast(static_cast<float>(i));
  V x = broadcast(0.999f), y = broadcast(1e-3f);
  for (int64_t round = 0; round < a.rounds; round++) {
    __asm__ volatile("" : SPARSEDET_REGISTER(x), SPARSEDET_REGISTER(y));
#pragma GCC unroll 16
    for (int i = 0; i < chains; i++) sum[i] = sum[i] * x + y;
  }
  V total = {};
  for (int i = 0; i < chains; i++) total += sum[i];
  for (int i = 0; i < L; i++) *a.sink += total[i];
  return a.rounds * chains * L * 2;
}

}  // namespace
}  // namespace sparsedet
