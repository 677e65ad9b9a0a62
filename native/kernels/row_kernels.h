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

template <class Product, int STRIDE, int P>
SPARSEDET_INLINE void depthwise_vectors(const DepthwiseArgs& a, int x) {
  constexpr int C = kChannels<Product>;
  const int taps = a.kernel_height * a.kernel_width;
  V sum[C][P];
#pragma GCC unroll 2
  for (int c = 0; c < C; c++)
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
      sum[c][p] = broadcast(a.bias[c]);
  const float *row = a.source + x * STRIDE, *weight = a.weights;
  for (int i = 0; i < a.kernel_height; i++, row += a.row_stride)
    for (int j = 0; j < a.kernel_width; j++, weight++) {
      const float* at = row + j * a.tap_stride;
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) {
        const V v = STRIDE == 1 ? load(at + p * L) : every_second(at + 2 * p * L);
#pragma GCC unroll 2
        for (int c = 0; c < C; c++)
          sum[c][p] += broadcast(weight[c * taps]) * channel_of<Product>(v, c);
      }
    }
  if (a.residual)
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
#pragma GCC unroll 2
      for (int c = 0; c < C; c++)
        sum[c][p] += channel_of<Product>(load(a.residual + x + p * L), c);
  store_row<Product, P>(sum, a.activation, a.out, x, a.width);
}

template <class Product>
void sums(const SumsArgs& a) {
  // Halves of vectors, because a double takes the room of two floats.
  typedef float Half __attribute__((vector_size(L * 2)));
  typedef int32_t HalfBits __attribute__((vector_size(L * 2), aligned(4), may_alias));
  typedef double D __attribute__((vector_size(L * 4)));
  constexpr int C = kChannels<Product>;
  D sum[C][2] = {}, squares[C][2] = {};
  for (int x = 0; x < a.width; x += L)
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      const HalfBits bits = *reinterpret_cast<const HalfBits*>(a.source + x + h * L / 2);
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

template <class Product>
void depthwise(const DepthwiseArgs& a) {
  for (int x = 0; x < a.width; x += kVectors * L)
    with_vectors((a.width - x + L - 1) / L, [&]<int P>() {
      if (a.stride == 1)
        depthwise_vectors<Product, 1, P>(a, x);
      else
        depthwise_vectors<Product, 2, P>(a, x);
    });
}

}  // namespace
}  // namespace sparsedet
