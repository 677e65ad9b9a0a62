// The specification: every kernel of kernels.h in plain loops.
#include "kernels/activation.h"
#include "kernels/elements.h"
#include "kernels/kernels.h"
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

void pack(const PackArgs& a) {
  for (int c = 0; c < a.count; c++)
    for (int p = 0; p < a.vectors; p++)
      for (int l = 0; l < L; l++) {
        const ptrdiff_t lane = a.runs ? lane_of(a.runs[p], l, a.stride) : l * a.stride;
        const float* base = a.source[a.runs ? 0 : p] + c * a.channel_stride;
        a.panel[(c * kVectors + p) * L + l] = lane < 0 ? 0 : base[lane];
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
                                           pack,
                                           pool,
                                           transpose,
                                           roi,
                                           mean,
                                           depthwise<RowFloat32>,
                                           sums<RowFloat32>,
                                           affine<RowFloat32>,
                                           winograd_input,
                                           winograd_output,
                                           peak<ScalarFloat32, float, 2>,
                                           loads};
}  // namespace sparsedet
