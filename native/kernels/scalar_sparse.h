// The specification of sparse_tile.h: the sparse products, in plain loops.
#pragma once
#include "kernels/scalar_rows.h"

namespace sparsedet {
namespace {

constexpr int L = kScalarLanes;

struct ScalarFloat32 {
  static void add_product(float& sum, float weight, float x) { sum += weight * x; }
};

// Where lane l of vector p is, floats from the base; -1: nowhere.
ptrdiff_t lane_of(const LaneRuns& runs, int l, int stride = 1) {
  for (int k = 0; k < runs.count; k++)
    if (l < runs.end[k]) return runs.offset[k] + l * stride;
  return -1;
}

// The same for a row of the output. `exists`: whether it has a value there; else zero is stored.
ptrdiff_t lane_of(const SparseArgs& a, int p, int l, bool& exists) {
  exists = a.runs || l < a.valid[p];
  return a.runs ? lane_of(a.runs[p], l) : a.offset[p] + l;
}

struct ScalarBfloat16 {
  static void add_product(float& sum, float weight, float x) {
    sum += odd_of(weight) * odd_of(x);
    sum += even_of(weight) * even_of(x);
  }
};

struct ScalarInt8 {
  static void add_product(int32_t& sum, float weight, float x) {
    for (int c = 0; c < 4; c++)
      sum += static_cast<int8_t>(byte_of(weight, c)) * static_cast<int32_t>(byte_of(x, c));
  }
};

// Adds the products of one row tile, and moves on to the index and values of the next one.
template <class Product, int R, class Sum>
void add_products(const SparseArgs& a, const uint16_t*& index, const float*& values,
                  const uint16_t* counts, Sum (&sum)[R][kVectors][L]) {
  for (int row_mask = 1; row_mask < 1 << R; row_mask++)
    for (int n = 0; n < counts[row_mask - 1]; n++) {
      const float* column = a.panel + *index++ * 2;  // 8 bytes are two elements
      for (int r = 0; r < R; r++) {
        if (!(row_mask >> r & 1)) continue;
        const float weight = *values++;
        for (int p = 0; p < a.vectors; p++)
          for (int l = 0; l < L; l++)
            Product::add_product(sum[r][p][l], weight, column[p * L + l]);
      }
    }
}

template <class Product, int R>
void sparse(const SparseArgs& a) {
  const uint16_t *index = a.index, *counts = a.counts;
  const float* values = a.values;
  for (int tile = 0; tile < a.row_tiles; tile++, counts += (1 << R) - 1) {
    float sum[R][kVectors][L];
    using Sums = float (*)[kVectors][L];
    Sums partial = reinterpret_cast<Sums>(a.partial + tile * R * kVectors * L);
    for (int r = 0; r < R; r++)
      for (int p = 0; p < a.vectors; p++)
        for (int l = 0; l < L; l++)
          sum[r][p][l] = a.first ? a.bias[tile * R + r] : partial[r][p][l];
    add_products<Product>(a, index, values, counts, sum);
    const bool odd = tile & 1;
    for (int r = 0; r < R; r++)
      for (int p = 0; p < a.vectors; p++)
        for (int l = 0; l < L; l++) {
          float v = sum[r][p][l];
          if (!a.last || (a.packed_output && !odd)) {
            partial[r][p][l] = v;
            continue;
          }
          const int row = a.packed_output ? tile / 2 * R + r : tile * R + r;
          if (row >= a.rows) continue;
          bool exists;
          const ptrdiff_t lane = lane_of(a, p, l, exists), at = row * a.row_stride + lane;
          if (lane < 0) continue;
          const float residual = a.residual ? a.residual[at] : 0;
          if (a.packed_output) {
            float low = (partial - R)[r][p][l];
            if (a.residual && !a.residual_last) low += even_of(residual), v += odd_of(residual);
            low = activated(low, a.activation);
            v = activated(v, a.activation);
            if (a.residual_last) low += even_of(residual), v += odd_of(residual);
            v = join_bfloat16(low, v);
          } else {
            if (a.residual && !a.residual_last) v += residual;
            v = activated(v, a.activation);
            if (a.residual_last) v += residual;
          }
          a.out[at] = exists ? v : 0;
        }
  }
}

// Two sums of each pixel: of every first and of every second column.
void rowwise(const SparseArgs& a) {
  const uint16_t *index = a.index, *counts = a.counts;
  const float* values = a.values;
  for (int i = 0; i < a.row_tiles; i++, counts += 2) {
    const int row = counts[0];
    float* partial = a.partial + row * kVectors * L;
    for (int p = 0; p < a.vectors; p++)
      for (int l = 0; l < L; l++) {
        float sum[2] = {a.first ? a.bias[row] : partial[p * L + l], 0};
        for (int n = 0; n < counts[1]; n++)  // 8 bytes are two elements
          ScalarFloat32::add_product(sum[n % 2], values[n], a.panel[index[n] * 2 + p * L + l]);
        float v = sum[0] + sum[1];
        if (!a.last) {
          partial[p * L + l] = v;
          continue;
        }
        if (row >= a.rows) continue;
        bool exists;
        const ptrdiff_t lane = lane_of(a, p, l, exists), at = row * a.row_stride + lane;
        if (lane < 0) continue;
        const float residual = a.residual ? a.residual[at] : 0;
        if (a.residual && !a.residual_last) v += residual;
        v = activated(v, a.activation);
        if (a.residual_last) v += residual;
        a.out[at] = exists ? v : 0;
      }
    index += counts[1];
    values += counts[1];
  }
}

// A row tile holds the channels of one output element. Sums are integers, so that all kernels give
// equal bits.
void sparse_int8(const SparseArgs& a) {
  constexpr int R = 4;
  const uint16_t *index = a.index, *counts = a.counts;
  const float* values = a.values;
  for (int tile = 0; tile < a.row_tiles; tile++, counts += (1 << R) - 1) {
    int32_t sum[R][kVectors][L];
    float* partial = a.partial + tile * R * kVectors * L;
    for (int r = 0; r < R; r++)
      for (int p = 0; p < a.vectors; p++)
        for (int l = 0; l < L; l++)
          sum[r][p][l] =
              a.first ? 0 : __builtin_bit_cast(int32_t, partial[(r * kVectors + p) * L + l]);
    add_products<ScalarInt8>(a, index, values, counts, sum);
    for (int p = 0; p < a.vectors; p++)
      for (int l = 0; l < L; l++) {
        uint32_t channels[R];
        bool exists;
        const ptrdiff_t lane = lane_of(a, p, l, exists);
        const ptrdiff_t at = tile * a.row_stride + lane;  // of an element
        for (int r = 0; r < R; r++) {
          const int row = tile * R + r;
          if (!a.last) {
            partial[(r * kVectors + p) * L + l] = __builtin_bit_cast(float, sum[r][p][l]);
            continue;
          }
          if (lane < 0) continue;
          float v = __builtin_fmaf(static_cast<float>(sum[r][p][l]), a.scale[row], a.bias[row]);
          const bool adds = a.packed_output && tile < a.rows && a.residual;
          const float added = adds ? static_cast<float>(byte_of(a.residual[at], r)) : 0;
          const bool late = a.residual_last && a.out_scale != 0;
          if (adds && !late) v = __builtin_fmaf(added, a.residual_scale, v);
          channels[r] = to_byte(v);
          if (a.packed_output && a.out_scale != 0) {
            float bent = activated(v, a.activation);
            if (adds && late) bent = __builtin_fmaf(added, a.residual_scale, bent);
            channels[r] = to_byte(__builtin_fmaf(bent, a.out_scale, a.out_zero));
          }
          if (!a.packed_output && row < a.rows)
            a.out[row * a.row_stride + lane] = exists ? activated(v, a.activation) : 0;
        }
        if (a.last && a.packed_output && tile < a.rows && lane >= 0)
          a.out[at] = exists ? join_bytes(channels) : a.outside;
      }
  }
}

}  // namespace
}  // namespace sparsedet
