// The specification of row_kernels.h: kernels on one row of one element of a map, in plain loops.
#pragma once
#include "kernels/activation.h"
#include "kernels/elements.h"
#include "kernels/kernels.h"

namespace sparsedet {
namespace {

constexpr int kScalarLanes = 4;

struct RowFloat32 {
  static constexpr int channels = 1;  // of an element
  static float read(float element, int) { return element; }
  static float join(const float* v) { return v[0]; }
};

struct RowBfloat16 {
  static constexpr int channels = 2;
  static float read(float element, int c) { return c ? odd_of(element) : even_of(element); }
  static float join(const float* v) { return join_bfloat16(v[0], v[1]); }
};

template <class Row>
void depthwise(const DepthwiseArgs& a) {
  const int taps = a.kernel_height * a.kernel_width;
  for (int row = 0; row < a.rows; row++) {
    const float* source = a.source + row * a.source_stride;
    float* out = a.out + row * a.out_stride;
    for (int x = 0; x < (a.width + kScalarLanes - 1) / kScalarLanes * kScalarLanes; x++) {
      float v[Row::channels];
      for (int c = 0; c < Row::channels; c++) {
        v[c] = a.bias[c];
        for (int j = 0; j < a.kernel_width; j++)
          for (int i = 0; i < a.kernel_height; i++)
            v[c] += a.weights[c * taps + i * a.kernel_width + j] *
                    Row::read(source[i * a.row_stride + j * a.tap_stride + x * a.stride], c);
        if (a.residual) v[c] += Row::read(a.residual[row * a.residual_stride + x], c);
        v[c] = activated(v[c], a.activation);
      }
      out[x] = x < a.width ? Row::join(v) : 0;
    }
  }
}

template <class Row>
void sums(const SumsArgs& a) {
  for (int y = 0; y < a.rows; y++)
    for (int x = 0; x < a.width; x++)
      for (int c = 0; c < Row::channels; c++) {
        const double v = Row::read(a.source[y * a.row_stride + x], c);
        a.sums[2 * c] += v;
        a.sums[2 * c + 1] += v * v;
      }
}

template <class Row>
void affine(const AffineArgs& a) {
  for (int x = 0; x < (a.width + kScalarLanes - 1) / kScalarLanes * kScalarLanes; x++) {
    float v[Row::channels];
    for (int c = 0; c < Row::channels; c++)
      v[c] = activated(Row::read(a.source[x], c) * a.factor[c] + a.offset[c], a.activation);
    a.out[x] = x < a.width ? Row::join(v) : 0;
  }
}

}  // namespace
}  // namespace sparsedet
