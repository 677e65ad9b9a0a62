// The specification: every kernel of kernels.h in plain loops.
#include "kernels/activation.h"
#include "kernels/elements.h"
#include "kernels/kernels.h"
#include "kernels/scalar_sparse.h"

namespace sparsedet {
namespace {

void pack(const PackArgs& a) {
  for (int c = 0; c < a.count; c++)
    for (int p = 0; p < a.vectors; p++)
      for (int l = 0; l < L; l++) {
        const ptrdiff_t lane = a.runs ? lane_of(a.runs[p], l, a.stride) : l * a.stride;
        const float* base = a.source[a.runs ? 0 : p] + c * a.channel_stride;
        a.panel[(c * kVectors + p) * L + l] = lane < 0 ? 0 : base[lane];
      }
}

void softmax(const SoftmaxArgs& a) {
  constexpr int lanes = kVectors * L;
  for (int l = 0; l < lanes; l++) {
    float *values = a.values + l, most = values[0], sum = 0;
    for (int i = 1; i < a.rows; i++)
      most = most > values[i * lanes] ? most : values[i * lanes];
    for (int i = 0; i < a.rows; i++)
      sum += values[i * lanes] = exp_of(values[i * lanes] - most);
    const float part = 1 / sum;
    for (int i = 0; i < a.rows; i++)
      values[i * lanes] *= part;
  }
}

// read(element): one value of a packed element.
template <class Read>
float largest(const PoolArgs& a, int x, Read read, int channel = 0) {
  const float* const* rows = a.rows[channel];
  float best = read(rows[0][2 * x]);
  for (int r = 0; r < 3; r++)
    for (int t = 0; t < 3; t++)
      if (const float v = read(rows[r][2 * x + t]); v > best) best = v;
  return best;
}

void pool(const PoolArgs& a) {
  for (int x = 0; x < (a.width + L - 1) / L * L; x++)
    a.out[x] = x < a.width ? largest(a, x, [](float v) { return v; }) : 0;
}

void pool_bf16(const PoolArgs& a) {
  for (int x = 0; x < (a.width + L - 1) / L * L; x++)
    a.out[x] = x < a.width ? join_bfloat16(largest(a, x, even_of), largest(a, x, odd_of)) : 0;
}

void pool_int8(const PoolArgs& a) {
  for (int x = 0; x < (a.width + L - 1) / L * L; x++) {
    uint32_t channels[4];
    for (int c = 0; c < 4; c++)
      channels[c] = to_byte(largest(a, x, [](float v) { return v; }, c) * a.scale);
    a.out[x] = x < a.width ? join_bytes(channels) : 0;
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

void roi_bf16(const RoiArgs& a) {
  for (int c = 0; c < a.channels; c++)
    for (int i = 0; i < L; i++) {
      float low = 0, high = 0;
      for (int k = 0; k < a.count[i]; k++) {
        const float element = a.map[a.cells[i][k] * a.pitch + c];
        low += a.weights[i][k] * even_of(element);
        high += a.weights[i][k] * odd_of(element);
      }
      if (a.bias) low += a.bias[c], high += a.bias[a.pitch + c];
      if (a.relu && !(low > 0)) low = 0;
      if (a.relu && !(high > 0)) high = 0;
      a.out[c * a.channel_stride + i] = join_bfloat16(low, high);
    }
}

void roi_int8(const RoiArgs& a) {
  for (int element = 0; element < a.channels; element++)
    for (int i = 0; i < L; i++) {
      uint32_t channels[4];
      for (int c = 0; c < 4; c++) {
        float sum = 0;
        for (int k = 0; k < a.count[i]; k++) {
          const float* cell = a.map + a.cells[i][k] * a.pitch;
          sum += a.weights[i][k] * (a.int8_map ? static_cast<float>(byte_of(cell[element], c))
                                               : cell[element * 4 + c]);
        }
        channels[c] = to_byte(__builtin_fmaf(sum, a.scale, a.bias ? a.bias[element * 4 + c] : 0));
      }
      a.out[element * a.channel_stride + i] = join_bytes(channels);
    }
}

void mean(const MeanArgs& a) {
  for (int l = 0; l < a.lanes; l++) {
    float sum = 0;
    for (int i = 0; i < a.cells; i++)
      sum += a.source[i * a.cell_stride + l];
    a.out[0][l] = sum * (1.0f / static_cast<float>(a.cells));
  }
}

void mean_bf16(const MeanArgs& a) {
  for (int l = 0; l < a.lanes; l++) {
    float low = 0, high = 0;
    for (int i = 0; i < a.cells; i++) {
      low += even_of(a.source[i * a.cell_stride + l]);
      high += odd_of(a.source[i * a.cell_stride + l]);
    }
    a.out[0][l] = low * (1.0f / static_cast<float>(a.cells));
    if (a.out[1]) a.out[1][l] = high * (1.0f / static_cast<float>(a.cells));
  }
}

void mean_int8(const MeanArgs& a) {
  for (int l = 0; l < a.lanes; l++)
    for (int c = 0; c < 4 && a.out[c]; c++) {
      int32_t sum = 0;
      for (int i = 0; i < a.cells; i++)
        sum += byte_of(a.source[i * a.cell_stride + l], c);
      a.out[c][l] = static_cast<float>(sum) * (a.scale * (1.0f / static_cast<float>(a.cells)));
    }
}

void quantise(const QuantiseArgs& a) {
  for (int x = 0; x < (a.width + L - 1) / L * L; x++) {
    uint32_t channels[4];
    for (int c = 0; c < 4; c++)
      channels[c] = to_byte(__builtin_fmaf(a.source[c][x], a.factor, a.offset));
    a.out[x] = x < a.width ? join_bytes(channels) : a.outside;
  }
}

void dequantise(const DequantiseArgs& a) {
  for (int c = 0; c < 4; c++)
    for (int x = 0; a.out[c] && x < (a.width + L - 1) / L * L; x++) {
      const int steps = static_cast<int>(byte_of(a.source[x], c)) - a.zero_point;
      a.out[c][x] = x < a.width ? static_cast<float>(steps) * a.scale : 0;
    }
}

constexpr float kInput[6][6] = {{4, 0, -5, 0, 1, 0},  {0, -4, -4, 1, 1, 0}, {0, 4, -4, -1, 1, 0},
                                {0, -2, -1, 2, 1, 0}, {0, 2, -1, -2, 1, 0}, {0, 4, 0, -5, 0, 1}};
constexpr float kOutput[4][6] = {
    {1, 1, 1, 1, 1, 0}, {0, 1, -1, 2, -2, 0}, {0, 1, 1, 4, 4, 0}, {0, 1, -1, 8, -8, 1}};

void winograd_input(const WinogradArgs& a) {
  for (int at = 0; at < a.channels * kVectors * L; at++) {
    if (at % (kVectors * L) >= a.vectors * L) continue;
    for (int i = 0; i < 36; i++) {
      float sum = 0;
      for (int k = 0; k < 36; k++)
        if (a.pixels[k]) sum += kInput[i / 6][k / 6] * kInput[i % 6][k % 6] * a.pixels[k][at];
      a.points[i * a.point_stride + at] = sum;
    }
  }
}

void winograd_output(const WinogradArgs& a) {
  for (int at = 0; at < a.channels * kVectors * L; at++) {
    if (at % (kVectors * L) >= a.vectors * L) continue;
    for (int i = 0; i < 16; i++) {
      if (!a.pixels[i]) continue;
      float sum = a.bias[at / (kVectors * L)];
      for (int k = 0; k < 36; k++)
        sum += kOutput[i / 4][k / 6] * kOutput[i % 4][k % 6] * a.points[k * a.point_stride + at];
      a.pixels[i][at] = a.relu && !(sum > 0) ? 0 : sum;
    }
  }
}

template <class Product, class Sum, int FLOPS>
int64_t peak(const PeakArgs& a) {
  Sum sum[8] = {};
  for (int64_t round = 0; round < a.rounds; round++)
    for (Sum& s : sum)
      Product::add_product(s, *a.sink, 0.5f);
  for (Sum s : sum)
    *a.sink += static_cast<float>(s);
  return a.rounds * 8 * FLOPS;
}

int64_t loads(const PeakArgs& a) {
  const volatile float memory[8] = {};
  float sum[8] = {};
  for (int64_t round = 0; round < a.rounds; round++)
    for (int i = 0; i < 8; i++)
      sum[i] = memory[i];
  for (float value : sum)
    *a.sink += value;
  return a.rounds * 8;
}

bool supported() {
  return true;
}

}  // namespace
extern const Float32Kernels kernels_scalar_f32;
extern const LowPrecisionKernels kernels_scalar_bf16, kernels_scalar_int8;

const LowPrecisionKernels kernels_scalar_bf16 = {
    L,
    5,
    supported,
    {nullptr, nullptr, nullptr, sparse<ScalarBfloat16, 3>, nullptr, sparse<ScalarBfloat16, 5>,
     nullptr},
    pool_bf16,
    roi_bf16,
    mean_bf16,
    depthwise<RowBfloat16>,
    sums<RowBfloat16>,
    affine<RowBfloat16>,
    peak<ScalarBfloat16, float, 4>,
    nullptr,
    nullptr};

const LowPrecisionKernels kernels_scalar_int8 = {
    L,
    4,
    supported,
    {nullptr, nullptr, nullptr, nullptr, sparse_int8, nullptr, nullptr},
    pool_int8,
    roi_int8,
    mean_int8,
    nullptr,
    nullptr,
    nullptr,
    peak<ScalarInt8, int32_t, 8>,
    quantise,
    dequantise};

const Float32Kernels kernels_scalar_f32 = {L,
                                           5,
                                           supported,
                                           {nullptr, nullptr, nullptr, sparse<ScalarFloat32, 3>,
                                            nullptr, sparse<ScalarFloat32, 5>, nullptr},
                                           rowwise,
                                           0,
                                           pack,
                                           pool,
                                           transpose,
                                           roi,
                                           mean,
                                           depthwise<RowFloat32>,
                                           sums<RowFloat32>,
                                           affine<RowFloat32>,
                                           softmax,
                                           winograd_input,
                                           winograd_output,
                                           peak<ScalarFloat32, float, 2>,
                                           loads};
}  // namespace sparsedet
