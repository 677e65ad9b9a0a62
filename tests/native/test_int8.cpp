// Tests the int8 kernels of one instruction set against plain loops written from the contract in
// kernels.h. Sums are integers and every later step is rounded once, so results are compared as
// bits, including canaries around each output.
#include "test_int8.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/activation.h"
#include "kernels/elements.h"

namespace {

using namespace sparsedet;

std::mt19937 rng(2);

uint32_t bits(float x) {
  return __builtin_bit_cast(uint32_t, x);
}
float from_bits(uint32_t x) {
  return __builtin_bit_cast(float, x);
}
float random_element() {
  return from_bits(static_cast<uint32_t>(rng()));
}
float fraction() {
  return static_cast<float>(rng()) * 0x1p-31f - 1.0f;
}
int weight_of(float w, int c) {
  return static_cast<int8_t>(byte_of(w, c));
}

// The contract's rounding, written differently than in elements.h.
uint32_t saturated(float x) {
  return static_cast<uint32_t>(std::nearbyint(std::min(255.0f, std::max(0.0f, x))));
}

// Aligned floats with a guard on both sides.
class GuardedBuffer {
 public:
  explicit GuardedBuffer(size_t size) : size_(size + 2 * kGuard) {
    data_ = static_cast<float*>(std::aligned_alloc(64, divide_up(size_ * 4, 64) * 64));
    for (size_t i = 0; i < size_; i++)
      data_[i] = from_bits(0x7f812345u + i);  // signalling NaNs
    expected_.assign(reinterpret_cast<uint32_t*>(data_),
                     reinterpret_cast<uint32_t*>(data_) + size_);
  }
  ~GuardedBuffer() { std::free(data_); }
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;
  float* data() { return data_ + kGuard; }
  void put(ptrdiff_t at, float value) { data()[at] = value, expect(at, value); }
  void expect(ptrdiff_t at, float value) { expected_[at + kGuard] = bits(value); }
  bool good() const { return std::memcmp(data_, expected_.data(), size_ * 4) == 0; }

 private:
  static constexpr size_t kGuard = 64;
  size_t size_;
  float* data_;
  std::vector<uint32_t> expected_;
};

// A packed weight within the kernels' limit: of -128..127, or of magnitudes that reach it.
float draw_weight(const Kernels& k) {
  const int limit = k.int8->pair_limit;
  uint32_t bytes[4];
  for (int i = 0; i < 4; i += 2) {
    int w[2];
    do {
      for (int& v : w)
        v = static_cast<int8_t>(rng());
      if (limit && rng() % 2) w[1] = (limit - std::abs(w[0])) * (rng() % 2 ? 1 : -1);
    } while ((limit && std::abs(w[0]) + std::abs(w[1]) > limit) || w[1] > 127);
    for (int j = 0; j < 2; j++)
      bytes[i + j] = static_cast<uint8_t>(w[j]);
  }
  return join_bytes(bytes);
}

struct Int8Case {
  int row_tiles, columns, P, valid;
  double density;
  bool first, last, packed_output, relu;
  int residual;  // none, separate, in place
  bool steps;    // bytes of a packed result come in a step of their own, after any activation
};

bool sparse_case(const Kernels& k, const Int8Case& c) {
  constexpr int R = 4;
  const int L = k.lanes, width = kVectors * L, rows = c.row_tiles * R;
  GuardedBuffer panel(static_cast<size_t>(c.columns) * width),
      partial(static_cast<size_t>(rows) * width);
  for (int i = 0; i < c.columns; i++)
    for (int j = 0; j < c.P * L; j++)
      panel.put(i * width + j, rng() % 4 ? random_element() : from_bits(~0u));  // or the largest
  std::vector<float> weight(rows * c.columns), bias(rows), scale(rows), values;
  for (float& w : weight)
    w = rng() * 0x1p-32 < c.density ? draw_weight(k) : 0;
  for (float& b : bias)
    b = 200 * fraction();
  for (float& s : scale)
    s = 2e-3f * fraction();
  std::vector<uint16_t> index, counts;
  for (int tile = 0; tile < c.row_tiles; tile++)
    for (int row_mask = 1; row_mask < 1 << R; row_mask++) {
      counts.push_back(0);
      for (int i = 0; i < c.columns; i++) {
        int mask = 0;
        for (int r = 0; r < R; r++)
          mask |= (bits(weight[(tile * R + r) * c.columns + i]) != 0) << r;
        if (mask != row_mask) continue;
        counts.back()++;
        index.push_back(static_cast<uint16_t>(i * width / 2));
        for (int r = 0; r < R; r++)
          if (mask >> r & 1) values.push_back(weight[(tile * R + r) * c.columns + i]);
      }
    }
  SparseArgs a{};
  a.row_stride = kVectors * (L + 1) + 2;
  for (int p = 0; p < c.P; p++) {
    a.offset[p] = (c.P - 1 - p) * (L + 1) + 1;
    a.valid[p] = p == c.P - 1 ? c.valid : L;
  }
  a.residual_scale = fraction();
  a.activation = c.relu ? Activation::relu : Activation::none;
  a.outside = random_element();
  if (c.steps) {
    a.activation = static_cast<Activation>(rng() % 8);
    a.residual_last = rng() % 2;
    a.out_scale = 1 + fraction();
    a.out_zero = static_cast<float>(rng() % 256);
  }
  // One row less than the row tiles have, if possible: the kernel must not store it.
  a.rows = c.packed_output ? c.row_tiles : std::max(1, rows - 1);
  GuardedBuffer out(a.rows * a.row_stride), residual(a.rows * a.row_stride);
  for (int row = 0; row < rows; row++)
    for (int p = 0; p < c.P; p++)
      for (int l = 0; l < L; l++)
        if (!c.first) partial.put(row * width + p * L + l, from_bits(rng() % 40000 - 20000));
  for (int tile = 0; tile < c.row_tiles; tile++)
    for (int p = 0; p < c.P; p++)
      for (int l = 0; l < L; l++) {
        uint32_t bytes[R];
        const ptrdiff_t element_at = tile * a.row_stride + a.offset[p] + l;
        const bool exists = l < a.valid[p], adds = c.last && c.packed_output && c.residual;
        if (adds) (c.residual == 1 ? residual : out).put(element_at, random_element());
        const float added = !adds ? 0 : (c.residual == 1 ? residual : out).data()[element_at];
        for (int r = 0; r < R; r++) {
          const int row = tile * R + r, at = row * width + p * L + l;
          int32_t sum = c.first ? 0 : static_cast<int32_t>(bits(partial.data()[at]));
          for (int i = 0; i < c.columns; i++)
            for (int b = 0; b < 4; b++)
              sum += weight_of(weight[row * c.columns + i], b) *
                     static_cast<int>(byte_of(panel.data()[i * width + p * L + l], b));
          if (!c.last) partial.expect(at, from_bits(static_cast<uint32_t>(sum)));
          float v = std::fma(static_cast<float>(sum), scale[row], bias[row]);
          const auto add = [&](float to) {
            return std::fma(static_cast<float>(byte_of(added, r)), a.residual_scale, to);
          };
          const bool late = c.steps && a.residual_last;
          if (adds && !late) v = add(v);
          const float bent = activated(v, a.activation);
          const float stepped = std::fma(adds && late ? add(bent) : bent, a.out_scale, a.out_zero);
          bytes[r] = saturated(c.steps ? stepped : v);
          if (c.last && !c.packed_output && row < a.rows)
            out.expect(row * a.row_stride + a.offset[p] + l, exists ? bent : 0);
        }
        if (c.last && c.packed_output)
          out.expect(element_at, exists ? join_bytes(bytes) : a.outside);
      }
  a.panel = panel.data();
  a.index = index.data();
  a.values = values.data();
  a.counts = counts.data();
  a.row_tiles = c.row_tiles;
  a.vectors = c.P;
  a.first = c.first;
  a.last = c.last;
  a.packed_output = c.packed_output;
  a.partial = c.first && c.last ? nullptr : partial.data();
  a.bias = bias.data();
  a.scale = scale.data();
  a.out = out.data();
  if (c.last && c.packed_output && c.residual)
    a.residual = (c.residual == 1 ? residual : out).data();
  if (c.P % 2) {  // far outside: prefetching is harmless
    a.prefetch = reinterpret_cast<const char*>(panel.data());
    a.prefetch_rows = 2;
    a.prefetch_stride = 1 << 20;
  }
  k.int8->sparse[R](a);
  return out.good() && partial.good() && panel.good() && residual.good();
}

bool convert_case(const Kernels& k, int width) {
  const int L = k.lanes, whole = divide_up(width, L) * L;
  std::vector<float> rows[4];
  QuantiseArgs q{{}, nullptr, width, 90.3f, 31.0f, random_element()};
  GuardedBuffer out(whole), back(3 * whole);
  for (int c = 0; c < 4; c++) {
    rows[c].resize(whole);
    for (float& v : rows[c])
      v = 3 * fraction();
    q.source[c] = rows[c].data();
  }
  DequantiseArgs d{nullptr, {}, width, 31, 0.37f};
  for (int x = 0; x < whole; x++) {
    uint32_t bytes[4];
    for (int c = 0; c < 4; c++) {
      bytes[c] = saturated(std::fma(rows[c][x], q.factor, q.offset));
      const auto steps = static_cast<float>(static_cast<int>(bytes[c]) - 31);
      if (c < 3) back.expect(c * whole + x, x < width ? steps * d.scale : 0);
    }
    out.expect(x, x < width ? join_bytes(bytes) : q.outside);
  }
  q.out = out.data();
  k.int8->quantise(q);
  d.source = out.data();
  for (int c = 0; c < 3; c++)  // the fourth channel is left out
    d.out[c] = back.data() + c * whole;
  k.int8->dequantise(d);
  return out.good() && back.good();
}

bool pool_case(const Kernels& k, int width) {
  const int L = k.lanes, whole = divide_up(width, L) * L;
  std::vector<float> rows[4][3];
  PoolArgs a{};
  a.scale = 90.3f;
  for (int c = 0; c < 4; c++)
    for (int r = 0; r < 3; r++) {
      rows[c][r].resize(2 * whole + 2);  // the taps of whole vectors
      for (float& v : rows[c][r])
        v = 3 * fraction();
      a.rows[c][r] = rows[c][r].data();
    }
  GuardedBuffer out(whole);
  for (int x = 0; x < whole; x++) {
    uint32_t bytes[4];
    for (int c = 0; c < 4; c++) {
      float best = -9;
      for (int t = 0; t < 9; t++)
        best = std::max(best, rows[c][t / 3][2 * x + t % 3]);
      bytes[c] = saturated(best * a.scale);
    }
    out.expect(x, x < width ? join_bytes(bytes) : 0);
  }
  a.out = out.data();
  a.width = width;
  k.int8->pool(a);
  return out.good();
}

// Integers as weights, so that the order of the sum does not matter.
bool roi_case(const Kernels& k, int elements, bool int8_map, bool bias) {
  const int L = k.lanes, cells = 23, pitch = divide_up(elements, L) * L * (int8_map ? 1 : 4);
  GuardedBuffer map(static_cast<size_t>(cells) * pitch), offsets(divide_up(elements, L) * L * 4);
  for (int i = 0; i < cells * pitch; i++)
    map.put(i,
            int8_map ? random_element() : static_cast<float>(static_cast<int>(rng() % 199) - 99));
  for (int c = 0; c < divide_up(elements, L) * L * 4; c++)
    offsets.put(c, 99 * fraction());
  RoiArgs a{};
  a.map = map.data();
  a.int8_map = int8_map;
  a.scale = 0.37f;
  a.channels = elements;
  a.pitch = pitch;
  a.bias = bias ? offsets.data() : nullptr;
  a.channel_stride = kVectors * L;
  GuardedBuffer out(elements * a.channel_stride);
  a.out = out.data();
  std::vector<int32_t> cells_of[kMaxLanes];
  std::vector<float> weights[kMaxLanes];
  for (int l = 0; l < L; l++) {
    for (int n = l * 5 % 7; n > 0; n--) {  // none for lane 0
      cells_of[l].push_back(static_cast<int32_t>(rng() % cells));
      weights[l].push_back(static_cast<float>(rng() % 5));
    }
    a.cells[l] = cells_of[l].data();
    a.weights[l] = weights[l].data();
    a.count[l] = static_cast<int>(cells_of[l].size());
    for (int w = 0; w < elements; w++) {
      uint32_t joined[4];
      for (int c = 0; c < 4; c++) {
        float sum = 0;
        for (int n = 0; n < a.count[l]; n++) {
          const float* cell = map.data() + cells_of[l][n] * pitch;
          sum += weights[l][n] *
                 (int8_map ? static_cast<float>(byte_of(cell[w], c)) : cell[4 * w + c]);
        }
        joined[c] = saturated(std::fma(sum, a.scale, bias ? offsets.data()[4 * w + c] : 0.0f));
      }
      out.expect(w * a.channel_stride + l, join_bytes(joined));
    }
  }
  k.int8->roi(a);
  return out.good();
}

bool mean_case(const Kernels& k, int cells, int channels) {
  const int L = k.lanes, lanes = kVectors * L;
  GuardedBuffer source(static_cast<size_t>(cells) * lanes * 2), out(4 * lanes);
  for (int i = 0; i < cells * lanes * 2; i++)
    source.put(i, random_element());
  MeanArgs a{};
  a.source = source.data() + lanes;
  a.cell_stride = 2 * lanes;
  a.cells = cells;
  a.lanes = lanes;
  a.scale = 0.083f;
  for (int c = 0; c < channels; c++) {
    a.out[c] = out.data() + c * lanes;
    for (int l = 0; l < lanes; l++) {
      int sum = 0;
      for (int i = 0; i < cells; i++)
        sum += static_cast<int>(byte_of(a.source[i * 2 * lanes + l], c));
      out.expect(c * lanes + l,
                 static_cast<float>(sum) * (a.scale * (1.0f / static_cast<float>(cells))));
    }
  }
  k.int8->mean(a);
  return out.good();
}

bool report(const std::string& name, int cases, int failed) {
  std::printf("%-4s %s: %d cases, %d failed\n", failed ? "BAD" : "ok", name.c_str(), cases, failed);
  return !failed;
}

}  // namespace

bool test_int8(const Kernels& k) {
  const int L = k.lanes;
  int cases = 0, failed = 0;
  auto check = [&](bool good) { cases++, failed += !good; };
  auto finish = [&](const char* what) {
    const bool good = report(k.isa + std::string(" int8 ") + what, cases, failed);
    cases = failed = 0;
    return good;
  };
  for (int row_tiles : {1, 3})
    for (int columns : {1, 37})
      for (double density : {0.0, 0.4, 1.0})
        for (int P = 1; P <= kVectors; P++)
          for (int valid : {1, L - 1, L})
            for (int flags = 0; flags < 32; flags++)
              for (int residual = 0; residual < 3; residual++)
                check(sparse_case(
                    k, {row_tiles, columns, P, valid, density, bool(flags & 1), bool(flags & 2),
                        bool(flags & 4), bool(flags & 8), residual, bool(flags & 16)}));
  bool good = finish("sparse");
  for (int n : {1, L - 1, L, L + 1, 3 * L + 2}) {
    check(pool_case(k, n));
    check(convert_case(k, n));
    for (int flags = 0; flags < 4; flags++)
      check(roi_case(k, n, flags & 1, flags & 2));
    for (int channels = 1; channels <= 4; channels++)
      check(mean_case(k, n, channels));
  }
  return finish("pool, roi, mean, conversions") && good;
}
