// The float32 kernels, for any vector length. vector.h says how a source file includes this.
#pragma once
#include "kernels/row_kernels.h"

namespace sparsedet {
namespace {

struct VectorFloat32 {
  static constexpr bool packed = false;
  static SPARSEDET_INLINE V weight(const float* p) { return broadcast(*p); }
  static SPARSEDET_INLINE V add_product(V sum, V weight, V x) { return sum + weight * x; }
};

template <int R>
void sparse(const SparseArgs& a) {
  sparse_tiles<VectorFloat32, R>(a);
}

// Two sums of each vector, because one would wait for its last multiply-add: of every first and of
// every second column.
template <int P>
__attribute__((noinline)) void rowwise_tile(const SparseArgs& a) {
  const uint16_t *index = a.index, *counts = a.counts;
  const float* values = a.values;
  const char* panel = reinterpret_cast<const char*>(a.panel);
  const auto add_column = [&](V(&sum)[P]) {
    const V* x = reinterpret_cast<const V*>(panel + static_cast<size_t>(*index++) * 8);
    const V w = broadcast_from(values++);
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
      sum[p] = fused(w, x[p], sum[p]);
  };
  for (int i = 0; i < a.row_tiles; i++, counts += 2) {
    const int row = counts[0], next = counts[i + 1 < a.row_tiles ? 2 : 0];
    V* partial = reinterpret_cast<V*>(a.partial) + row * kVectors;
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      if (!a.first || !a.last) __builtin_prefetch(partial + (next - row) * kVectors + p, 1, 3);
      if (a.last && a.residual)
        __builtin_prefetch(a.residual + next * a.row_stride + first_pixel(a, p), 0, 3);
    }
    V sum[P], other[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      sum[p] = a.first ? broadcast(a.bias[row]) : partial[p];
      other[p] = V{};
    }
#pragma GCC unroll 1
    for (int left = counts[1] / 2; left > 0; left--) {
      add_column(sum);
      add_column(other);
    }
    if (counts[1] % 2) add_column(sum);
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
      sum[p] += other[p];
    if (!a.last)
#pragma GCC unroll 8
      for (int p = 0; p < P; p++)
        partial[p] = sum[p];
    else if (row < a.rows)
      finish_row(a, row, sum);
  }
}

void rowwise(const SparseArgs& a) {
  with_vectors(a.vectors, [&]<int P>() { rowwise_tile<P>(a); });
}

template <int P>
SPARSEDET_INLINE void pack_vectors(const PackArgs& a) {
  V* to = reinterpret_cast<V*>(a.panel);
  ptrdiff_t at = 0;
  if (a.stride == 1) {
    for (int c = 0; c < a.count; c++, at += a.channel_stride, to += kVectors)
#pragma GCC unroll 8
      for (int p = 0; p < P; p++)
        to[p] = load(a.source[p] + at);
  } else {
    for (int c = 0; c < a.count; c++, at += a.channel_stride, to += kVectors)
#pragma GCC unroll 8
      for (int p = 0; p < P; p++)
        to[p] = every_second(a.source[p] + at);
  }
}

template <int STRIDE>
SPARSEDET_INLINE V load_every(const float* p) {
  return STRIDE == 1 ? load(p) : every_second(p);
}

// All columns of one vector. RUNS: how many it has; 0: any number.
template <int STRIDE, int RUNS>
SPARSEDET_INLINE void pack_vector(const PackArgs& a, const LaneRuns& runs, V* to) {
  const float* from = a.source[0];
  const int count = RUNS ? RUNS : runs.count;
  const I first = iota() < runs.end[0] - (I){};
  for (int c = 0; c < a.count; c++, from += a.channel_stride, to += kVectors) {
    V v = load_every<STRIDE>(from + runs.offset[0]);
    if (count > 1) v = first ? v : load_every<STRIDE>(from + runs.offset[1]);
    for (int k = 2; k < count; k++)
      v = iota() < runs.end[k - 1] - (I){} ? v : load_every<STRIDE>(from + runs.offset[k]);
    *to = v;
  }
}

template <int STRIDE>
void pack_runs(const PackArgs& a) {
  for (int p = 0; p < a.vectors; p++) {
    const LaneRuns& runs = a.runs[p];
    V* to = reinterpret_cast<V*>(a.panel) + p;
    if (runs.count == 1)
      pack_vector<STRIDE, 1>(a, runs, to);
    else if (runs.count == 2)
      pack_vector<STRIDE, 2>(a, runs, to);
    else
      pack_vector<STRIDE, 0>(a, runs, to);
  }
}

void pack(const PackArgs& a) {
  if (a.runs) return a.stride == 1 ? pack_runs<1>(a) : pack_runs<2>(a);
  with_vectors(a.vectors, [&]<int P>() { pack_vectors<P>(a); });
}

void softmax(const SoftmaxArgs& a) {
  for (int p = 0; p < kVectors; p++) {
    V* const values = reinterpret_cast<V*>(a.values) + p;
    V most = values[0], sum = {};
    for (int i = 1; i < a.rows; i++)
      most = larger(most, values[i * kVectors]);
    for (int i = 0; i < a.rows; i++)
      sum += values[i * kVectors] = exp_of(values[i * kVectors] - most);
    const V part = 1.0f / sum;
    for (int i = 0; i < a.rows; i++)
      values[i * kVectors] *= part;
  }
}

void pool(const PoolArgs& a) {
  for (int x = 0; x < a.width; x += L) {
    const V best = largest(a.rows[0], x);
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
      for (int i = 0; i < L && x + i < a.pixels; i++)
        store(a.out + (x + i) * a.pitch + c, t[i]);
    }
}

// B vectors of channels at a time: in a cell they are neighbours in memory.
template <int B>
SPARSEDET_INLINE void roi_block(const RoiArgs& a, int c) {
  V t[B][L];
#pragma GCC unroll 1
  for (int i = 0; i < L; i++) {
    V sum[B] = {};
    for (int k = 0; k < a.count[i]; k++) {
      const V weight = broadcast(a.weights[i][k]);
      const float* cell = a.map + a.cells[i][k] * a.pitch + c;
#pragma GCC unroll 8
      for (int j = 0; j < B; j++)
        sum[j] += weight * load(cell + j * L);
    }
#pragma GCC unroll 8
    for (int j = 0; j < B; j++) {
      if (a.bias) sum[j] += load(a.bias + c + j * L);
      t[j][i] = a.relu ? relu(sum[j]) : sum[j];
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
    V sum[kVectors] = {};
    for (int i = 0; i < a.cells; i++)
#pragma GCC unroll 8
      for (int p = 0; p < kVectors; p++)
        sum[p] += load(a.source + i * a.cell_stride + l + p * L);
#pragma GCC unroll 8
    for (int p = 0; p < kVectors; p++)
      store(a.out[0] + l + p * L, sum[p] * scale);
  }
}

// One axis of the input transform: six values STEP apart, in place.
template <int STEP>
SPARSEDET_INLINE void input_axis(V* d) {
  const V a = d[4 * STEP] - 4.0f * d[2 * STEP], b = d[3 * STEP] - 4.0f * d[STEP];
  const V c = d[4 * STEP] - d[2 * STEP], e = 2.0f * (d[3 * STEP] - d[STEP]);
  const V first = 4.0f * d[0] - 5.0f * d[2 * STEP] + d[4 * STEP];
  const V last = 4.0f * d[STEP] - 5.0f * d[3 * STEP] + d[5 * STEP];
  d[0] = first;
  d[STEP] = a + b;
  d[2 * STEP] = a - b;
  d[3 * STEP] = c + e;
  d[4 * STEP] = c - e;
  d[5 * STEP] = last;
}

// One axis of the output transform: six values STEP apart become the first four of them.
template <int STEP>
SPARSEDET_INLINE void output_axis(V* m) {
  const V a = m[STEP] + m[2 * STEP], b = m[STEP] - m[2 * STEP];
  const V c = m[3 * STEP] + m[4 * STEP], d = m[3 * STEP] - m[4 * STEP];
  m[0] = m[0] + a + c;
  m[STEP] = b + 2.0f * d;
  m[2 * STEP] = a + 4.0f * c;
  m[3 * STEP] = b + 8.0f * d + m[5 * STEP];
}

void winograd_input(const WinogradArgs& a) {
  for (int c = 0; c < a.channels; c++)
    for (int p = 0; p < a.vectors; p++) {
      const ptrdiff_t at = (c * kVectors + p) * L;
      V d[36];
#pragma GCC unroll 6
      for (int row = 0; row < 6; row++) {
#pragma GCC unroll 6
        for (int i = row * 6; i < row * 6 + 6; i++)
          d[i] = a.pixels[i] ? load(a.pixels[i] + at) : (V){};
        input_axis<1>(d + row * 6);
      }
#pragma GCC unroll 6
      for (int column = 0; column < 6; column++) {
        input_axis<6>(d + column);
#pragma GCC unroll 6
        for (int i = column; i < 36; i += 6)
          store(a.points + i * a.point_stride + at, d[i]);
      }
    }
}

void winograd_output(const WinogradArgs& a) {
  for (int c = 0; c < a.channels; c++)
    for (int p = 0; p < a.vectors; p++) {
      const ptrdiff_t at = (c * kVectors + p) * L;
      V m[36];
#pragma GCC unroll 6
      for (int column = 0; column < 6; column++) {
#pragma GCC unroll 6
        for (int i = column; i < 36; i += 6)
          m[i] = load(a.points + i * a.point_stride + at);
        output_axis<6>(m + column);
      }
      const V bias = broadcast(a.bias[c]);
#pragma GCC unroll 4
      for (int row = 0; row < 4; row++) {
        output_axis<1>(m + row * 6);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
          float* to = a.pixels[row * 4 + i];
          if (!to) continue;
          const V v = m[row * 6 + i] + bias;
          store(to + at, a.relu ? relu(v) : v);
        }
      }
    }
}

int64_t peak(const PeakArgs& a) {
  constexpr int chains = 12;  // hides the latency of two units
  V sum[chains];              // different values, or the compiler would keep one
  for (int i = 0; i < chains; i++)
    sum[i] = broadcast(static_cast<float>(i));
  V x = broadcast(0.999f), y = broadcast(1e-3f);
  for (int64_t round = 0; round < a.rounds; round++) {
    __asm__ volatile("" : SPARSEDET_REGISTER(x), SPARSEDET_REGISTER(y));
#pragma GCC unroll 16
    for (int i = 0; i < chains; i++)
      sum[i] = sum[i] * x + y;
  }
  V total = {};
  for (int i = 0; i < chains; i++)
    total += sum[i];
  for (int i = 0; i < L; i++)
    *a.sink += total[i];
  return a.rounds * chains * L * 2;
}

int64_t loads(const PeakArgs& a) {
  constexpr int vectors = 32;
  V memory[vectors] = {};
  for (int64_t round = 0; round < a.rounds; round++) {
    __asm__ volatile("" : : "r"(memory) : "memory");  // it may have changed
#pragma GCC unroll 32
    for (int i = 0; i < vectors; i++) {
      V v = memory[i];
      __asm__ volatile("" : SPARSEDET_REGISTER(v));
    }
  }
  *a.sink += memory[0][0];
  return a.rounds * vectors;
}

}  // namespace
}  // namespace sparsedet
