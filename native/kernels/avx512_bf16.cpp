// bfloat16 with AVX-512's dot product of pairs (AVX512_BF16), which flushes denormals to zero.
#define SPARSEDET_LANES 16
#include "kernels/avx512_bf16.h"

namespace sparsedet {
namespace {

template <int R>
void sparse(const SparseArgs& a) {
  sparse_tiles<VectorBfloat16, R>(a);
}

void pool(const PoolArgs& a) {
  for (int x = 0; x < a.width; x += L) {
    // Nonnegative bfloat16 values have the order of their bits.
    __m512i best = {};
    for (int r = 0; r < 3; r++)
      for (int t = 0; t < 3; t++)
        best = _mm512_max_epu16(best, (__m512i)every_second(a.rows[0][r] + 2 * x + t));
    const V elements = (V)best;
    store(a.out + x, a.width - x < L ? keep(elements, a.width - x) : elements);
  }
}

template <int B>
SPARSEDET_INLINE void roi_block(const RoiArgs& a, int c) {
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
        low[j] += weight * VectorBfloat16::even(elements);
        high[j] += weight * VectorBfloat16::odd(elements);
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < B; j++) {
      if (a.bias) {
        low[j] += load(a.bias + c + j * L);
        high[j] += load(a.bias + a.pitch + c + j * L);
      }
      if (a.relu) low[j] = relu(low[j]), high[j] = relu(high[j]);
      t[j][i] = VectorBfloat16::join(low[j], high[j]);
    }
  }
  store_rois(a, c, t);
}

void roi(const RoiArgs& a) {
  int c = 0;
  for (; c + 4 * L <= a.channels; c += 4 * L)
    roi_block<4>(a, c);
  for (; c < a.channels; c += L)
    roi_block<1>(a, c);
}

void mean(const MeanArgs& a) {
  const V scale = broadcast(1.0f / static_cast<float>(a.cells));
  for (int l = 0; l < a.lanes; l += kVectors * L) {  // reads neighbours in memory together
    V low[kVectors] = {}, high[kVectors] = {};
    for (int i = 0; i < a.cells; i++)
#pragma GCC unroll 8
      for (int p = 0; p < kVectors; p++) {
        const V elements = load(a.source + i * a.cell_stride + l + p * L);
        low[p] += VectorBfloat16::even(elements);
        high[p] += VectorBfloat16::odd(elements);
      }
#pragma GCC unroll 8
    for (int p = 0; p < kVectors; p++) {
      store(a.out[0] + l + p * L, low[p] * scale);
      if (a.out[1]) store(a.out[1] + l + p * L, high[p] * scale);
    }
  }
}

bool supported() {
  return __builtin_cpu_supports("avx512bf16");
}

}  // namespace
extern const LowPrecisionKernels kernels_avx512_bf16;
const LowPrecisionKernels kernels_avx512_bf16 = {
    L,
    5,
    supported,
    {nullptr, nullptr, nullptr, nullptr, sparse<4>, sparse<5>, nullptr},
    pool,
    roi,
    mean,
    depthwise<VectorBfloat16>,
    sums<VectorBfloat16>,
    affine<VectorBfloat16>,
    low_precision_peak<VectorBfloat16, 4>};
}  // namespace sparsedet
