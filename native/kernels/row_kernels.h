// Kernels on one row of one element of a map, in float32 and bfloat16, for any vector length. See
// kernels.h; Product is that of sparse_tile.h.
#pragma once
#include "kernels/sparse_tile.h"

namespace sparsedet {
namespace {

template <class Product>
constexpr int kChannels = Product::packed ? 2 : 1;  // of an element

template <class Product>
SPARSEDET_INLINE V channel_of(V elements, int channel) {
  if constexpr (Product::packed)
    return channel ? Product::odd(elements) : Product::even(elements);
  else
    return elements;
}

// Activates the channels of P vectors and stores them as elements, from pixel x of a row on.
template <class Product, int P>
SPARSEDET_INLINE void store_row(V (&v)[kChannels<Product>][P], Activation activation, float* out,
                                int x, int width) {
  for (int c = 0; c < kChannels<Product>; c++)
    activate(v[c], activation);
#pragma GCC unroll 8
  for (int p = 0; p < P; p++) {
    V elements = v[0][p];
    if constexpr (Product::packed) elements = Product::join(v[0][p], v[1][p]);
    const int left = width - x - p * L;
    store(out + x + p * L, left < L ? keep(elements, left) : elements);
  }
}

// R rows and P vectors of output. K: rows of the filter; 0: any number, as the arguments say, and R
// is 1. A loaded vector serves all rows of output that read it.
template <class Product, int K, int STRIDE, int R, int P>
SPARSEDET_INLINE void depthwise_vectors(const DepthwiseArgs& a, int row, int x) {
  constexpr int C = kChannels<Product>;
  static_assert(K > 0 || R == 1);
  const int height = K ? K : a.kernel_height, taps = height * a.kernel_width;
  V sum[R][C][P];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int c = 0; c < C; c++)
#pragma GCC unroll 8
      for (int p = 0; p < P; p++)
        sum[r][c][p] = broadcast(a.bias[c]);
  const float* source = a.source + row * a.source_stride + x * STRIDE;
#pragma GCC unroll 1
  for (int j = 0; j < a.kernel_width; j++, source += a.tap_stride) {
    const float* weights = a.weights + j;
    const auto tap = [&](int i, int r, const V(&v)[P]) {
#pragma GCC unroll 2
      for (int c = 0; c < C; c++) {
        const V weight = broadcast(weights[c * taps + i * a.kernel_width]);
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
          sum[r][c][p] += weight * channel_of<Product>(v[p], c);
      }
    };
    const auto load_taps = [&](int i, V(&v)[P]) {
      const float* at = source + i * a.row_stride;
#pragma GCC unroll 8
      for (int p = 0; p < P; p++)
        v[p] = STRIDE == 1 ? load(at + p * L) : every_second(at + 2 * p * L);
    };
    V v[P];
    if constexpr (K == 0) {
      for (int i = 0; i < height; i++) {
        load_taps(i, v);
        tap(i, 0, v);
      }
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < (R - 1) * STRIDE + K; i++) {
        load_taps(i, v);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
          if (i - r * STRIDE >= 0 && i - r * STRIDE < K) tap(i - r * STRIDE, r, v);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    if (a.residual)
#pragma GCC unroll 8
      for (int p = 0; p < P; p++)
#pragma GCC unroll 2
        for (int c = 0; c < C; c++)
          sum[r][c][p] +=
              channel_of<Product>(load(a.residual + (row + r) * a.residual_stride + x + p * L), c);
    store_row<Product, P>(sum[r], a.activation, a.out + (row + r) * a.out_stride, x, a.width);
  }
}

template <class Product>
void sums(const SumsArgs& a) {
  // Halves of vectors, because a double takes the room of two floats.
  typedef float Half __attribute__((vector_size(L * 2)));
  typedef int32_t HalfBits __attribute__((vector_size(L * 2), aligned(4), may_alias));
  typedef double D __attribute__((vector_size(L * 4)));
  constexpr int C = kChannels<Product>;
  D sum[C][2] = {}, squares[C][2] = {};
  const float* row = a.source;
  for (int y = 0; y < a.rows; y++, row += a.row_stride)
    for (int x = 0; x < a.width; x += L)
#pragma GCC unroll 2
      for (int h = 0; h < 2; h++) {
        const HalfBits bits = *reinterpret_cast<const HalfBits*>(row + x + h * L / 2);
#pragma GCC unroll 2
        for (int c = 0; c < C; c++) {
          // A bfloat16 is the upper half of a float32.
          const Half v = (Half)(C == 1 ? bits : c ? bits & -65536 : bits << 16);
          const D d = __builtin_convertvector(v, D);
          sum[c][h] += d;
          squares[c][h] += d * d;
        }
      }
  for (int c = 0; c < C; c++) {
    const D all = sum[c][0] + sum[c][1], all_squares = squares[c][0] + squares[c][1];
    for (int i = 0; i < L / 2; i++) {
      a.sums[2 * c] += all[i];
      a.sums[2 * c + 1] += all_squares[i];
    }
  }
}

template <class Product, int P>
SPARSEDET_INLINE void affine_vectors(const AffineArgs& a, int x) {
  constexpr int C = kChannels<Product>;
  V v[C][P];
#pragma GCC unroll 8
  for (int p = 0; p < P; p++) {
    const V elements = load(a.source + x + p * L);
#pragma GCC unroll 2
    for (int c = 0; c < C; c++)
      v[c][p] = channel_of<Product>(elements, c) * broadcast(a.factor[c]) + broadcast(a.offset[c]);
  }
  store_row<Product, P>(v, a.activation, a.out, x, a.width);
}

template <class Product>
void affine(const AffineArgs& a) {
  for (int x = 0; x < a.width; x += kVectors * L)
    with_vectors((a.width - x + L - 1) / L, [&]<int P>() { affine_vectors<Product, P>(a, x); });
}

// Vectors of output in registers beside kDepthwiseRows rows of it.
template <class Product>
constexpr int kDepthwiseVectors = (L >= 16 ? 4 : 2) / kChannels<Product>;
constexpr int kDepthwiseRows = 4;

template <class Product, int K, int STRIDE, int R>
__attribute__((noinline)) void depthwise_rows(const DepthwiseArgs& a, int row) {
  constexpr int vectors = kDepthwiseVectors<Product>;
  for (int x = 0; x < a.width; x += vectors * L)
    with_vectors(a.width - x < vectors * L ? (a.width - x + L - 1) / L : vectors, [&]<int P>() {
      if constexpr (P <= vectors) depthwise_vectors<Product, K, STRIDE, R, P>(a, row, x);
    });
}

template <class Product, int K, int STRIDE>
SPARSEDET_INLINE void depthwise_filter(const DepthwiseArgs& a) {
  int row = 0;
  const bool shared = a.source_stride == STRIDE * a.row_stride;  // rows of output share their input
  if constexpr (K > 0)
    for (; shared && row + kDepthwiseRows <= a.rows; row += kDepthwiseRows)
      depthwise_rows<Product, K, STRIDE, kDepthwiseRows>(a, row);
  for (; row < a.rows; row++)
    depthwise_rows<Product, K, STRIDE, 1>(a, row);
}

template <class Product, int K>
SPARSEDET_INLINE void depthwise_stride(const DepthwiseArgs& a) {
  a.stride == 1 ? depthwise_filter<Product, K, 1>(a) : depthwise_filter<Product, K, 2>(a);
}

template <class Product>
void depthwise(const DepthwiseArgs& a) {
  switch (a.kernel_height) {
    case 3:
      return depthwise_stride<Product, 3>(a);
    case 5:
      return depthwise_stride<Product, 5>(a);
    default:
      return depthwise_stride<Product, 0>(a);
  }
}

}  // namespace
}  // namespace sparsedet
