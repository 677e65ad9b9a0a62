// The specification: every kernel in plain loops. Other instruction sets are tested against it.
#include "kernels.h"

namespace sparsedet {
namespace {

constexpr int L = 4;

template <int G>
void sparse(const SparseArgs& a) {
  const uint16_t *index = a.index, *counts = a.counts;
  const float* values = a.values;
  for (int group = 0; group < a.groups; group++, counts += (1 << G) - 1) {
    float sum[G][kVectors][L];
    float(*partial)[kVectors][L] =
        reinterpret_cast<float(*)[kVectors][L]>(a.partial + group * G * kVectors * L);
    for (int g = 0; g < G; g++)
      for (int p = 0; p < a.vectors; p++)
        for (int l = 0; l < L; l++)
          sum[g][p][l] = a.first ? a.bias[group * G + g] : partial[g][p][l];
    for (int pattern = 1; pattern < 1 << G; pattern++)
      for (int n = 0; n < counts[pattern - 1]; n++) {
        const float* column = a.panel + *index++ * 2;  // 8 bytes are two floats
        for (int g = 0; g < G; g++) {
          if (!(pattern >> g & 1)) continue;
          const float weight = *values++;
          for (int p = 0; p < a.vectors; p++)
            for (int l = 0; l < L; l++) sum[g][p][l] += weight * column[p * L + l];
        }
      }
    for (int g = 0; g < G; g++)
      for (int p = 0; p < a.vectors; p++)
        for (int l = 0; l < L; l++) {
          if (!a.last) {
            partial[g][p][l] = sum[g][p][l];
            continue;
          }
          const int row = group * G + g;
          if (row >= a.rows) continue;
          const ptrdiff_t at = row * a.row_stride + a.offset[p] + l;
          float v = sum[g][p][l];
          if (a.residual) v += a.residual[at];
          if (a.relu && !(v > 0)) v = 0;
          a.out[at] = l < a.valid[p] ? v : 0;
        }
  }
}

void pack(const PackArgs& a) {
  for (int c = 0; c < a.count; c++)
    for (int p = 0; p < a.vectors; p++)
      for (int l = 0; l < L; l++)
        a.panel[(c * kVectors + p) * L + l] = a.source[p][c * a.channel_stride + l * a.stride];
}

void pool(const PoolArgs& a) {
  for (int x = 0; x < (a.width + L - 1) / L * L; x++) {
    float best = a.rows[0][2 * x];
    for (int r = 0; r < 3; r++)
      for (int t = 0; t < 3; t++)
        if (a.rows[r][2 * x + t] > best) best = a.rows[r][2 * x + t];
    a.out[x] = x < a.width ? best : 0;
  }
}

void transpose(const TransposeArgs& a) {
  for (int x = 0; x < a.pixels; x++)
    for (int c = 0; c < a.pitch; c++)
      a.out[x * a.pitch + c] = c < a.channels ? a.source[c * a.channel_stride + x] : 0;
}

void roi(const RoiArgs& a) {
  for (int c = 0; c < a.channels; c++)
    for (int i = 0; i < L; i++) {
      float sum = 0;
      for (int k = 0; k < a.count[i]; k++)
        sum += a.weights[i][k] * a.map[a.cells[i][k] * a.pitch + c];
      if (a.bias) sum += a.bias[c];
      if (a.relu && !(sum > 0)) sum = 0;
      a.out[c * a.channel_stride + i] = sum;
    }
}

bool supported() { return true; }

}  // namespace
const Kernels kernels_scalar = {
    "scalar", L, supported, {nullptr, nullptr, nullptr, sparse<3>, nullptr, sparse<5>, nullptr},
    pack, pool, transpose, roi};
}  // namespace sparsedet
