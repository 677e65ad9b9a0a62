// The int8 kernels of one instruction set against plain loops written here from the contract in
// kernels.h. Sums are whole numbers and every later step is rounded once, so all is compared as
// bits, canaries round each output included.
#include "test_int8.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/int8.h"

namespace {

using namespace sparsedet;

std::mt19937 rng(2);

uint32_t bits(float x) {
  return __builtin_bit_cast(uint32_t, x);
}
float from_bits(uint32_t x) {
  return __builtin_bit_cast(float, x);
}
float word() {
  return from_bits(static_cast<uint32_t>(rng()));
}
float fraction() {
  return static_cast<float>(rng()) * 0x1p-31f - 1.0f;
}
int divide_up(int a, int b) {
  return (a + b - 1) / b;
}
int weight_of(float w, int c) {
  return static_cast<int8_t>(byte_of(w, c));
}

// The contract's rounding, in other words than int8.h has it.
uint32_t saturated(float x) {
  return static_cast<uint32_t>(std::nearbyint(std::min(255.0f, std::max(0.0f, x))));
}

// Aligned floats with a guard on both sides.
class Buffer {
 public:
  explicit Buffer(size_t size) : size_(size + 2 * kGuard) {
    data_ = static_cast<float*>(std::aligned_alloc(64, divide_up(size_ * 4, 64) * 64));
    for (size_t i = 0; i < size_; i++)
      data_[i] = from_bits(0x7f812345u + i);  // signalling NaNs
    want_.assign(reinterpret_cast<uint32_t*>(data_), reinterpret_cast<uint32_t*>(data_) + size_);
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  float* data() { return data_ + kGuard; }
  void put(ptrdiff_t at, float value) { data()[at] = value, expect(at, value); }
  void expect(ptrdiff_t at, float value) { want_[at + kGuard] = bits(value); }
  bool good() const { return std::memcmp(data_, want_.data(), size_ * 4) == 0; }

 private:
  static constexpr size_t kGuard = 64;
  size_t size_;
  float* data_;
  std::vector<uint32_t> want_;
};

struct Case {
  int groups, columns, P, valid;
  double density;
  bool first, last, words, relu;
  int residual;  // none, separate, in place
};

bool sparse_case(const Kernels& k, const Case& c) {
  constexpr int G = 4;
  const int L = k.lanes, width = kVectors * L, rows = c.groups * G;
  Buffer panel(static_cast<size_t>(c.columns) * width), partial(static_cast<size_t>(rows) * width);
  for (int i = 0; i < c.columns; i++)
    for (int j = 0; j < c.P * L; j++)
      panel.put(i * width + j, word());
  std::vector<float> weight(rows * c.columns), bias(rows), scale(rows), values;
  for (float& w : weight)
    w = rng() * 0x1p-32 < c.density ? word() : 0;
  for (float& b : bias)
    b = 200 * fraction();
  for (float& s : scale)
    s = 2e-3f * fraction();
  std::vector<uint16_t> index, counts;
  for (int group = 0; group < c.groups; group++)
    for (int pattern = 1; pattern < 1 << G; pattern++) {
      counts.push_back(0);
      for (int i = 0; i < c.columns; i++) {
        int mask = 0;
        for (int g = 0; g < G; g++)
          mask |= (bits(weight[(group * G + g) * c.columns + i]) != 0) << g;
        if (mask != pattern) continue;
        counts.back()++;
        index.push_back(static_cast<uint16_t>(i * width / 2));
        for (int g = 0; g < G; g++)
          if (mask >> g & 1) values.push_back(weight[(group * G + g) * c.columns + i]);
      }
    }
  SparseArgs a{};
  a.row_stride = kVectors * (L + 1) + 2;
  for (int p = 0; p < c.P; p++) {
    a.offset[p] = (c.P - 1 - p) * (L + 1) + 1;
    a.valid[p] = p == c.P - 1 ? c.valid : L;
  }
  a.residual_scale = fraction();
  // One row less than the groups have, if there is room: it must not be stored.
  a.rows = c.words ? c.groups : std::max(1, rows - 1);
  Buffer out(a.rows * a.row_stride), residual(a.rows * a.row_stride);
  for (int row = 0; row < rows; row++)
    for (int p = 0; p < c.P; p++)
      for (int l = 0; l < L; l++)
        if (!c.first) partial.put(row * width + p * L + l, from_bits(rng() % 40000 - 20000));
  for (int group = 0; group < c.groups; group++)
    for (int p = 0; p < c.P; p++)
      for (int l = 0; l < L; l++) {
        uint32_t bytes[G];
        const ptrdiff_t word_at = group * a.row_stride + a.offset[p] + l;
        const bool exists = l < a.valid[p], adds = c.last && c.words && c.residual;
        if (adds) (c.residual == 1 ? residual : out).put(word_at, word());
        const float added = !adds ? 0 : (c.residual == 1 ? residual : out).data()[word_at];
        for (int g = 0; g < G; g++) {
          const int row = group * G + g, at = row * width + p * L + l;
          int32_t sum = c.first ? 0 : static_cast<int32_t>(bits(partial.data()[at]));
          for (int i = 0; i < c.columns; i++)
            for (int b = 0; b < 4; b++)
              sum += weight_of(weight[row * c.columns + i], b) *
                     static_cast<int>(byte_of(panel.data()[i * width + p * L + l], b));
          if (!c.last) partial.expect(at, from_bits(static_cast<uint32_t>(sum)));
          float v = std::fma(static_cast<float>(sum), scale[row], bias[row]);
          if (adds) v = std::fma(static_cast<float>(byte_of(added, g)), a.residual_scale, v);
          bytes[g] = saturated(v);
          if (c.last && !c.words && row < a.rows)
            out.expect(row * a.row_stride + a.offset[p] + l, !exists || (c.relu && v < 0) ? 0 : v);
        }
        if (c.last && c.words) out.expect(word_at, exists ? join_bytes(bytes) : 0);
      }
  a.panel = panel.data();
  a.index = index.data();
  a.values = values.data();
  a.counts = counts.data();
  a.groups = c.groups;
  a.vectors = c.P;
  a.first = c.first;
  a.last = c.last;
  a.words = c.words;
  a.relu = c.relu;
  a.partial = c.first && c.last ? nullptr : partial.data();
  a.bias = bias.data();
  a.scale = scale.data();
  a.out = out.data();
  if (c.last && c.words && c.residual) a.residual = (c.residual == 1 ? residual : out).data();
  if (c.P % 2) {  // far outside: prefetching is harmless
    a.prefetch = reinterpret_cast<const char*>(panel.data());
    a.prefetch_rows = 2;
    a.prefetch_stride = 1 << 20;
  }
  k.bytes->sparse[G](a);
  return out.good() && partial.good() && panel.good() && residual.good();
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
  Buffer out(whole);
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
  k.bytes->pool(a);
  return out.good();
}

// Whole numbers as weights, so that the order of the sum does not matter.
bool roi_case(const Kernels& k, int words, bool bytes, bool bias) {
  const int L = k.lanes, cells = 23,
            pitch = bytes ? divide_up(words, L) * L : divide_up(words, L) * L * 4;
  Buffer map(static_cast<size_t>(cells) * pitch), offsets(divide_up(words, L) * L * 4);
  for (int i = 0; i < cells * pitch; i++)
    map.put(i, bytes ? word() : static_cast<float>(static_cast<int>(rng() % 199) - 99));
  for (int c = 0; c < divide_up(words, L) * L * 4; c++)
    offsets.put(c, 99 * fraction());
  RoiArgs a{};
  a.map = map.data();
  a.bytes = bytes;
  a.scale = 0.37f;
  a.channels = words;
  a.pitch = pitch;
  a.bias = bias ? offsets.data() : nullptr;
  a.channel_stride = kVectors * L;
  Buffer out(words * a.channel_stride);
  a.out = out.data();
  std::vector<int32_t> places[kMaxLanes];
  std::vector<float> weights[kMaxLanes];
  for (int l = 0; l < L; l++) {
    for (int n = l * 5 % 7; n > 0; n--) {  // none for lane 0
      places[l].push_back(static_cast<int32_t>(rng() % cells));
      weights[l].push_back(static_cast<float>(rng() % 5));
    }
    a.cells[l] = places[l].data();
    a.weights[l] = weights[l].data();
    a.count[l] = static_cast<int>(places[l].size());
    for (int w = 0; w < words; w++) {
      uint32_t joined[4];
      for (int c = 0; c < 4; c++) {
        float sum = 0;
        for (int n = 0; n < a.count[l]; n++) {
          const float* cell = map.data() + places[l][n] * pitch;
          sum +=
              weights[l][n] * (bytes ? static_cast<float>(byte_of(cell[w], c)) : cell[4 * w + c]);
        }
        joined[c] = saturated(std::fma(sum, a.scale, bias ? offsets.data()[4 * w + c] : 0.0f));
      }
      out.expect(w * a.channel_stride + l, join_bytes(joined));
    }
  }
  k.bytes->roi(a);
  return out.good();
}

bool mean_case(const Kernels& k, int cells, int channels) {
  const int L = k.lanes, lanes = kVectors * L;
  Buffer source(static_cast<size_t>(cells) * lanes * 2), out(4 * lanes);
  for (int i = 0; i < cells * lanes * 2; i++)
    source.put(i, word());
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
  k.bytes->mean(a);
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
  for (int groups : {1, 3})
    for (int columns : {1, 37})
      for (double density : {0.0, 0.4, 1.0})
        for (int P = 1; P <= kVectors; P++)
          for (int valid : {1, L - 1, L})
            for (int flags = 0; flags < 16; flags++)
              for (int residual = 0; residual < 3; residual++)
                check(
                    sparse_case(k, {groups, columns, P, valid, density, bool(flags & 1),
                                    bool(flags & 2), bool(flags & 4), bool(flags & 8), residual}));
  bool good = finish("sparse");
  for (int n : {1, L - 1, L, L + 1, 3 * L + 2}) {
    check(pool_case(k, n));
    for (int flags = 0; flags < 4; flags++)
      check(roi_case(k, n, flags & 1, flags & 2));
    for (int channels = 1; channels <= 4; channels++)
      check(mean_case(k, n, channels));
  }
  return finish("pool, roi, mean") && good;
}
