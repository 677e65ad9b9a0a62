// Tests every kernel of every instruction set that this CPU supports, and the packing of weights,
// against plain loops written from the contract in kernels.h. Operands are integers from -4 to 4,
// so that results are exact in any order of summation. A second pass with fractions allows the
// rounding error of a float32 sum of n products. Outputs are filled with a canary and compared as a
// whole, so that the expectation includes everything a kernel must not write.
//
// Arguments are the names of instruction sets; none: all of them. Prints a line for each group of
// cases; exits with 1 if a case failed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "algorithms/pack.h"
#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "test_int8.h"
#include "test_layers.h"
#include "test_low_precision.h"

namespace {

using namespace sparsedet;

constexpr float kCanary = 777.25f;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

template <class T>
struct Aligned {
  using value_type = T;
  T* allocate(size_t n) {
    return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{64}));
  }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t{64}); }
  bool operator==(const Aligned&) const { return true; }
};
using Floats = std::vector<float, Aligned<float>>;

std::mt19937 rng(1);

float draw(bool fraction) {
  if (fraction) return static_cast<float>(rng()) * 0x1p-31f - 1.0f;
  return static_cast<float>(rng() % 9) - 4.0f;
}

float draw_nonzero(bool fraction) {
  float v;
  do
    v = draw(fraction);
  while (v == 0);
  return v;
}

bool with_probability(double p) {
  return rng() * 0x1p-32 < p;
}

// A buffer that a kernel writes, with guards on both sides, and its expected content.
class Output {
 public:
  explicit Output(size_t size)
      : floats_(size + 2 * kGuard, kCanary),
        expected_(floats_.begin(), floats_.end()),
        tolerance_(floats_.size(), 0.0) {}
  float* data() { return floats_.data() + kGuard; }
  // Sets the content before the call.
  void put(ptrdiff_t at, float value) { expected_[at + kGuard] = data()[at] = value; }
  void expect(ptrdiff_t at, double value, double tolerance = 0) {
    expected_[at + kGuard] = value;
    tolerance_[at + kGuard] = tolerance;
  }
  bool good() const {
    for (size_t i = 0; i < floats_.size(); i++)
      if (!(std::abs(floats_[i] - expected_[i]) <= tolerance_[i])) return false;
    return true;
  }

 private:
  static constexpr int kGuard = 64;
  Floats floats_;
  std::vector<double> expected_, tolerance_;
};

// A sum of products in double, and the largest error of a float32 sum in any order.
struct Sum {
  double value = 0, magnitude = 0;
  int terms = 0;
  void add(double x) {
    value += x;
    magnitude += std::abs(x);
    terms++;
  }
  // An activation of the sum: integers are exact before it, so that one formula gives equal bits.
  double activated(Activation activation) const {
    const auto x = static_cast<float>(value);
    const float sigmoid = std::clamp(x + 3, 0.0f, 6.0f) * (1.0f / 6);
    if (activation == Activation::hardsigmoid) return sigmoid;
    if (activation == Activation::hardswish) return x * sigmoid;
    return activation == Activation::relu && value < 0 ? 0 : value;
  }
  double tolerance(bool fraction) const { return fraction ? (terms + 2) * 0x1p-24 * magnitude : 0; }
};

// Vectors of pixels from rows of `width`, one after the other; rows are `row` floats apart, and
// neighbours in a row `pixel` floats.
std::vector<LaneRuns> joined_rows(int L, int vectors, int pixels, int width, int row, int pixel) {
  std::vector<LaneRuns> runs(vectors);
  for (int n = 0; n < pixels; n++) {
    LaneRuns& of = runs[n / L];
    const int lane = n % L, y = n / width, x = n % width;
    if (lane == 0 || x == 0) of.offset[of.count++] = y * row + (x - lane) * pixel;
    of.end[of.count - 1] = lane + 1;
  }
  return runs;
}

// The narrowest rows that a vector may take its pixels from.
int narrowest(int L) {
  return divide_up(L - 1, kMaxRuns - 1);
}

// ------------------------------------------------------------------------------------ the sum

struct SparseCase {
  int R, P, rows, columns, valid;  // R 1: the kernel `rowwise`
  int run_width;  // of rows that vectors take their pixels from; 0: each vector is of one row
  double density;
  bool first, last, fraction;
  Activation activation;
  enum { none, separate, in_place } residual;
};

bool sparse_case(const Kernels& k, const SparseCase& c) {
  const int L = k.lanes, row_tiles = divide_up(c.rows, c.R), width = kVectors * L;
  Floats panel(static_cast<size_t>(c.columns) * width, kNaN);  // vectors from P on stay NaN
  for (int i = 0; i < c.columns; i++)
    for (int j = 0; j < c.P * L; j++)
      panel[i * width + j] = draw(c.fraction);
  // Padding rows of the last row tile have weights, too: the kernel must not store them.
  std::vector<float> weight(static_cast<size_t>(row_tiles) * c.R * c.columns);
  for (float& w : weight)
    w = with_probability(c.density) ? draw_nonzero(c.fraction) : 0;
  std::vector<uint16_t> index, counts;
  std::vector<float> values;
  for (int i = 0; i < row_tiles; i++) {
    const int tile = c.R > 1 ? i : (i * 7 + 3) % row_tiles;  // rowwise: in any order
    if (c.R == 1) counts.push_back(static_cast<uint16_t>(tile));
    for (int row_mask = 1; row_mask < 1 << c.R; row_mask++) {
      counts.push_back(0);
      for (int column = 0; column < c.columns; column++) {
        int mask = 0;
        for (int r = 0; r < c.R; r++)
          mask |= (weight[(tile * c.R + r) * c.columns + column] != 0) << r;
        if (mask != row_mask) continue;
        counts.back()++;
        index.push_back(static_cast<uint16_t>(column * width * sizeof(float) / 8));
        for (int r = 0; r < c.R; r++)
          if (mask >> r & 1) values.push_back(weight[(tile * c.R + r) * c.columns + column]);
      }
    }
  }
  std::vector<float> bias(static_cast<size_t>(row_tiles) * c.R);
  for (float& b : bias)
    b = draw(c.fraction);

  // Vectors in descending order and rows with gaps, none of them aligned.
  SparseArgs a{};
  constexpr int gap = 3;  // between two rows of pixels, and before the first one
  std::vector<LaneRuns> runs;
  a.row_stride = kVectors * (L + 1) + 2;
  for (int p = 0; p < c.P; p++) {
    a.offset[p] = (c.P - 1 - p) * (L + 1) + 1;
    a.valid[p] = p == c.P - 1 ? c.valid : L;
  }
  if (c.run_width) {
    const int pixels = (c.P - 1) * L + c.valid;
    runs = joined_rows(L, c.P, pixels, c.run_width, c.run_width + gap, 1);
    a.row_stride = (divide_up(pixels, c.run_width) + 1) * (c.run_width + gap);
    a.runs = runs.data();
  }
  // Where a pixel is, from the beginning of its row of the output.
  const auto place = [&](int p, int l) -> ptrdiff_t {
    const int n = p * L + l;
    if (!c.run_width) return a.offset[p] + l;
    return gap + n / c.run_width * (c.run_width + gap) + n % c.run_width;
  };
  Output out(c.rows * a.row_stride), partial(static_cast<size_t>(row_tiles) * c.R * width);
  std::vector<float> residual(c.rows * a.row_stride + (c.run_width ? 2 * L : 0), kNaN);
  for (int row = 0; row < row_tiles * c.R; row++)
    for (int p = 0; p < c.P; p++)
      for (int l = 0; l < L; l++) {
        Sum sum;
        const ptrdiff_t sum_at = row * width + p * L + l;
        const ptrdiff_t at = row * a.row_stride + place(p, l);
        if (!c.first) partial.put(sum_at, draw(c.fraction));
        sum.add(c.first ? bias[row] : partial.data()[sum_at]);
        for (int i = 0; i < c.columns; i++)
          sum.add(double{weight[row * c.columns + i]} * panel[i * width + p * L + l]);
        if (!c.last) {
          partial.expect(sum_at, sum.value, sum.tolerance(c.fraction));
        } else if (row < c.rows) {
          const bool exists = l < a.valid[p];
          if (c.run_width && !exists) continue;  // nothing is stored
          if (c.residual && exists) sum.add(residual[at] = draw(c.fraction));
          if (c.residual == SparseCase::in_place) out.put(at, residual[at]);
          double tolerance = sum.tolerance(c.fraction);
          if (c.fraction && c.activation > Activation::relu)  // its slope is at most 1.5
            tolerance = 1.5 * tolerance + 0x1p-21 * (1 + sum.magnitude);
          out.expect(at, exists ? sum.activated(c.activation) : 0, exists ? tolerance : 0);
        }
      }
  a.panel = panel.data();
  a.index = index.data();
  a.values = values.data();
  a.counts = counts.data();
  a.row_tiles = row_tiles;
  a.vectors = c.P;
  a.first = c.first;
  a.last = c.last;
  a.partial = c.first && c.last ? nullptr : partial.data();
  a.bias = c.first ? bias.data() : nullptr;
  if (c.last) {
    const int first = c.run_width ? gap : 0;
    a.out = out.data() + first;
    if (c.residual)
      a.residual = (c.residual == SparseCase::in_place ? out.data() : residual.data()) + first;
    a.rows = c.rows;
    a.activation = c.activation;
  }
  if (c.P % 2) {  // far outside: prefetching is harmless
    a.prefetch = reinterpret_cast<const char*>(panel.data());
    a.prefetch_rows = 2;
    a.prefetch_stride = 1 << 20;
  }
  (c.R > 1 ? k.sparse[c.R] : k.rowwise)(a);
  return out.good() && partial.good();
}

// ---------------------------------------------------------------------------- the other kernels

// run_width: as of SparseCase.
bool pack_case(const Kernels& k, int stride, int vectors, int count, int run_width) {
  const int L = k.lanes, row = stride * run_width + 1;
  const int channel_stride = run_width ? divide_up(vectors * L, run_width) * row + 5 : 2 * L + 5;
  std::vector<float> source(3 * vectors + count * channel_stride + 2 * stride * L);
  for (float& v : source)
    v = draw(false);
  Output panel(static_cast<size_t>(count) * kVectors * L);
  PackArgs a{};
  for (int p = 0; p < vectors; p++)
    a.source[p] = source.data() + 3 * (p + 1);
  std::vector<LaneRuns> runs;
  if (run_width) {
    runs = joined_rows(L, vectors, vectors * L - 1, run_width, row, stride);
    a.source[0] = source.data() + L;  // a run is read from before its first lane on
    a.runs = runs.data();
  }
  a.channel_stride = channel_stride;
  a.count = count;
  a.vectors = vectors;
  a.stride = stride;
  a.panel = panel.data();
  for (int c = 0; c < count; c++)
    for (int p = 0; p < vectors; p++)
      for (int l = 0; l < L; l++) {
        const int n = p * L + l, at = (c * kVectors + p) * L + l;
        const int joined = run_width ? n / run_width * row + n % run_width * stride : 0;
        const float* from = run_width ? a.source[0] + joined : a.source[p] + l * stride;
        if (run_width && n == vectors * L - 1)
          panel.expect(at, 0, INFINITY);  // no pixel
        else
          panel.expect(at, from[c * channel_stride]);
      }
  k.pack(a);
  return panel.good();
}

bool pool_case(const Kernels& k, int width) {
  const int L = k.lanes, whole = divide_up(width, L) * L;
  std::vector<float> rows[3];
  PoolArgs a{};
  for (int r = 0; r < 3; r++) {
    rows[r].resize(2 * whole + 2);  // the taps of whole vectors
    for (float& v : rows[r])
      v = draw(false);
    a.rows[0][r] = rows[r].data();
  }
  Output out(whole);
  for (int x = 0; x < whole; x++) {
    float best = rows[0][2 * x];
    for (const auto& row : rows)
      for (int t = 0; t < 3; t++)
        best = std::max(best, row[2 * x + t]);
    out.expect(x, x < width ? best : 0);
  }
  a.out = out.data();
  a.width = width;
  k.pool(a);
  return out.good();
}

bool transpose_case(const Kernels& k, int channels, int pixels) {
  const int L = k.lanes, pitch = divide_up(channels, L) * L;
  const int channel_stride = divide_up(pixels, L) * L + 1;  // whole vectors are read
  std::vector<float> source(static_cast<size_t>(channels) * channel_stride, kNaN);
  Output out(static_cast<size_t>(pixels) * pitch);
  for (int x = 0; x < pixels; x++)
    for (int c = 0; c < pitch; c++)
      out.expect(x * pitch + c, c < channels ? source[c * channel_stride + x] = draw(false) : 0.0f);
  k.transpose({source.data(), channel_stride, channels, pixels, out.data(), pitch});
  return out.good();
}

bool roi_case(const Kernels& k, int channels, bool bias, bool relu, bool fraction) {
  const int L = k.lanes, pitch = divide_up(channels, L) * L, map_cells = 23;
  Floats map(static_cast<size_t>(map_cells) * pitch, kNaN), offset(pitch, kNaN);
  for (int c = 0; c < channels; c++) {
    offset[c] = draw(fraction);
    for (int i = 0; i < map_cells; i++)
      map[i * pitch + c] = draw(fraction);
  }
  RoiArgs a{};
  std::vector<int32_t> cells[kMaxLanes];
  std::vector<float> weights[kMaxLanes];
  a.channel_stride = kVectors * L;
  Output out(channels * a.channel_stride);
  for (int l = 0; l < L; l++) {
    for (int n = l * 5 % 7; n > 0; n--) {  // none for lane 0
      cells[l].push_back(static_cast<int32_t>(rng() % map_cells));
      weights[l].push_back(draw(fraction));
    }
    a.cells[l] = cells[l].data();
    a.weights[l] = weights[l].data();
    a.count[l] = static_cast<int>(cells[l].size());
    for (int c = 0; c < channels; c++) {
      Sum sum;
      for (int n = 0; n < a.count[l]; n++)
        sum.add(double{weights[l][n]} * map[cells[l][n] * pitch + c]);
      if (bias) sum.add(offset[c]);
      out.expect(c * a.channel_stride + L + l, relu && sum.value < 0 ? 0 : sum.value,
                 sum.tolerance(fraction));
    }
  }
  a.map = map.data();
  a.channels = channels;
  a.pitch = pitch;
  a.bias = bias ? offset.data() : nullptr;
  a.relu = relu;
  a.out = out.data() + L;
  k.roi(a);
  return out.good();
}

bool softmax_case(const Kernels& k, int rows) {
  const int width = kVectors * k.lanes;
  Output out(static_cast<size_t>(rows) * width);
  for (int l = 0; l < width; l++) {
    double sum = 0;
    for (int i = 0; i < rows; i++)
      out.put(i * width + l, 9 * draw(true) + (l == 3 ? 300.0f : 0.0f));
    for (int i = 0; i < rows; i++)
      sum += std::exp(double{out.data()[i * width + l]} - out.data()[l]);
    for (int i = 0; i < rows; i++) {
      const double share = std::exp(double{out.data()[i * width + l]} - out.data()[l]) / sum;
      out.expect(i * width + l, share, 3e-6 * share + 1e-30);
    }
  }
  k.softmax({out.data(), rows});
  return out.good();
}

// ------------------------------------------------------------------------------- packed weights

// Unpacks the streams again: every column and every weight occurs exactly once.
bool round_trip(const Kernels& k, const ConvShape& s, double density, bool split_taps,
                PackedLayout layout) {
  const int taps = s.taps();
  std::vector<float> weight(static_cast<size_t>(s.out_channels) * s.in_channels * taps);
  for (float& w : weight)
    w = with_probability(density) ? draw_nonzero(true) : 0;
  std::vector<float> bias(s.out_channels), unpacked(weight.size());
  for (float& b : bias)
    b = draw(true);
  const bool no_bias = split_taps;
  const PackedConv conv = pack_conv(k, s, weight.data(), no_bias ? nullptr : bias.data(),
                                    split_taps, false, {}, layout);
  const bool rowwise = layout == PackedLayout::rowwise;

  const int R = conv.tile_rows, column_bytes = kVectors * k.lanes * static_cast<int>(sizeof(float));
  bool good = (rowwise ? R == 1 : k.sparse[R] != nullptr) &&
              conv.segments.size() == conv.streams.size() &&
              conv.bias.size() == static_cast<size_t>(conv.row_tiles) * R;
  for (size_t row = 0; row < conv.bias.size(); row++)
    good &= conv.bias[row] == (no_bias || row >= bias.size() ? 0 : bias[row]);
  std::vector<int> seen(static_cast<size_t>(s.in_channels) * taps);
  int64_t nonzero = 0;
  for (size_t block = 0; good && block < conv.segments.size(); block++) {
    std::vector<int> columns;  // positions in a row of weights
    for (const Segment& g : conv.segments[block]) {
      const int y = g.dy + s.padding_top, x = g.dx + s.padding_left;
      good &= y >= 0 && x >= 0 && y < s.kernel_height && x < s.kernel_width && g.count > 0 &&
              g.channel >= 0 && g.channel + g.count <= s.in_channels;
      for (int c = g.channel; good && c < g.channel + g.count; c++) {
        columns.push_back(c * taps + y * s.kernel_width + x);
        seen[columns.back()]++;
      }
    }
    good &= columns.size() == static_cast<size_t>(conv.columns(block));
    good &= columns.size() * column_bytes <= 36 * 1024;  // in the first-level cache
    good &= !split_taps || conv.segments[block].size() == 1;
    good &= conv.streams[block].size() == static_cast<size_t>(conv.chunks);
    int row = 0;
    for (const Stream& stream : conv.streams[block]) {
      const int first = row, counts = conv.counts();
      std::vector<int> lengths;  // rowwise: of the rows, in order
      size_t i = 0, v = 0, row_tiles = stream.counts.size() / counts;
      good &= row_tiles == size_t(std::min(conv.chunk_row_tiles, conv.row_tiles - row / R));
      for (size_t tile = 0; good && tile < row_tiles; tile++) {
        row = first + R * (rowwise ? stream.counts[2 * tile] : static_cast<int>(tile));
        if (rowwise) lengths.push_back(stream.counts[2 * tile + 1]);
        for (int row_mask = 1; good && row_mask < 1 << R; row_mask++)
          for (int n = stream.counts[tile * counts + rowwise + row_mask - 1]; good && n > 0; n--) {
            good &= i < stream.index.size() && stream.index[i] * 8 % column_bytes == 0;
            const size_t column = good ? size_t(stream.index[i++]) * 8 / column_bytes : 0;
            good &= column < columns.size();
            for (int r = 0; good && r < R; r++)
              if (row_mask >> r & 1) {
                good &= row + r < s.out_channels && v < stream.values.size();
                if (!good) break;
                float& w = unpacked[size_t(row + r) * s.in_channels * taps + columns[column]];
                good &= w == 0 && stream.values[v] != 0;
                w = stream.values[v++];
                nonzero++;
              }
          }
      }
      good &= std::is_sorted(lengths.begin(), lengths.end());
      row = first + static_cast<int>(row_tiles) * R;
      good &= i == stream.index.size() && v == stream.values.size();
    }
    good &= row == conv.row_tiles * R;
  }
  for (int n : seen)
    good &= n == 1;
  return good && unpacked == weight &&
         nonzero == std::count_if(weight.begin(), weight.end(), [](float w) { return w != 0; });
}

// ------------------------------------------------------------------------------------- the runs

// Counts and reports the cases of one group.
class CaseGroup {
 public:
  explicit CaseGroup(std::string name) : name_(std::move(name)) {}
  template <class... Args>
  void check(bool good, const char* format, Args... args) {
    cases_++;
    if (good) return;
    if (failed_++ < 5) {
      std::printf("FAILED %s: ", name_.c_str());
      std::printf(format, args...);
      std::printf("\n");
    }
  }
  bool report() const {
    std::printf("%-4s %s: %d cases, %d failed\n", failed_ ? "BAD" : "ok", name_.c_str(), cases_,
                failed_);
    return failed_ == 0;
  }

 private:
  std::string name_;
  int cases_ = 0, failed_ = 0;
};

bool test_sparse(const Kernels& k, int R, bool fraction) {
  const std::string name = R > 1 ? " sparse R=" + std::to_string(R) : " rowwise";
  CaseGroup group(k.isa + name + (fraction ? " fractions" : ""));
  const int L = k.lanes;
  SparseCase c{};
  c.R = R;
  c.fraction = fraction;
  // One row, one row less than a row tile, exactly one, one row more, several row tiles.
  for (int rows : R > 1 ? std::vector{1, R - 1, R, R + 1, 3 * R - 1} : std::vector{1, 6, 9})
    for (int columns : {1, 37})
      for (double density : {0.0, 0.4, 1.0})
        for (c.P = 1; c.P <= kVectors; c.P++)
          for (int valid : {1, L - 1, L})
            for (int run_width : {0, narrowest(L), L + 2})
              for (int flags = 0; flags < 16; flags++)
                for (int residual = 0; residual < 3; residual++) {
                  c.rows = rows;
                  c.columns = columns;
                  c.density = density;
                  c.valid = valid;
                  c.run_width = run_width;
                  c.first = flags & 1;
                  c.last = flags & 2;
                  c.activation = static_cast<Activation>(flags / 4);
                  c.residual = static_cast<decltype(c.residual)>(residual);
                  if (!c.last && (flags / 4 || residual)) continue;  // they have no effect
                  group.check(
                      sparse_case(k, c),
                      "rows %d columns %d density %g P %d valid %d run width %d first %d last %d "
                      "activation %d residual %d",
                      rows, columns, density, c.P, valid, run_width, c.first, c.last, flags / 4,
                      residual);
                }
  return group.report();
}

bool test_others(const Kernels& k) {
  const int L = k.lanes;
  const std::string isa = k.isa;
  const int lengths[] = {1, L - 1, L, L + 1, 3 * L + 2};
  CaseGroup pack(isa + " pack"), pool(isa + " pool"), transpose(isa + " transpose"),
      roi(isa + " roi"), softmax(isa + " softmax");
  for (int vectors = 1; vectors <= kVectors; vectors++)
    for (int stride : {1, 2})
      for (int count : {1, 5})
        for (int run_width : {0, narrowest(L), L + 2})
          pack.check(pack_case(k, stride, vectors, count, run_width),
                     "vectors %d stride %d count %d run width %d", vectors, stride, count,
                     run_width);
  for (int a : lengths) {
    pool.check(pool_case(k, a), "width %d", a);
    for (int b : lengths)
      transpose.check(transpose_case(k, a, b), "channels %d pixels %d", a, b);
    for (int flags = 0; flags < 8; flags++)
      roi.check(roi_case(k, a, flags & 1, flags & 2, flags & 4), "channels %d flags %d", a, flags);
  }
  for (int rows : {1, 2, 37, 400})
    softmax.check(softmax_case(k, rows), "rows %d", rows);
  bool good = true;
  for (const CaseGroup* g : {&pack, &pool, &transpose, &roi, &softmax})
    good &= g->report();
  return good;
}

// Packed bytes of which `change` made something else are refused.
template <class Change>
bool refused(const Kernels& k, Change change) {
  const ConvShape s{40, 9, 1, 1, 1, 0, 0};
  std::vector<float> weight(size_t{40} * 9);
  for (float& w : weight)
    w = draw(true);
  const auto layout = PackedLayout::rowwise;
  const PackedConv conv = pack_conv(k, s, weight.data(), nullptr, false, false, {}, layout);
  Floats copy(conv.packed.size() / sizeof(float));
  std::memcpy(copy.data(), conv.packed.data(), conv.packed.size());
  change(reinterpret_cast<uint16_t*>(copy.data()));
  std::span<const std::byte> bytes = std::as_bytes(std::span(copy));
  try {
    unpack_conv(k, s, bytes, nullptr, nullptr, false, layout);
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

bool test_pack_conv(const Kernels& k) {
  CaseGroup group(std::string(k.isa) + " pack_conv");
  const int shapes[][3] = {{1, 1, 1}, {13, 7, 3}, {3, 11, 7}, {129, 85, 3}, {1000, 401, 1}};
  for (const auto& [in, out, kernel] : shapes)
    for (double density : {0.0, 0.4, 1.0})
      for (int kind = 0; kind < 3; kind++)
        group.check(round_trip(k, {in, out, kernel, kernel, 1, kernel / 2, kernel / 2}, density,
                               kind == 1, PackedLayout(kind == 2)),
                    "%d -> %d, kernel %d, density %g, kind %d", in, out, kernel, density, kind);
  group.check(!refused(k, [](uint16_t*) {}), "the same bytes");
  group.check(refused(k, [](uint16_t* counts) { counts[0] = counts[2]; }), "a row twice");
  group.check(refused(k, [](uint16_t* counts) { counts[0] = 9; }), "a row that does not exist");
  group.check(refused(k, [](uint16_t* counts) { counts[1] = 60000; }), "columns beyond the end");
  group.check(refused(k, [](uint16_t* counts) { counts[18] = 0xffff; }), "an index past the panel");
  group.check(refused(k, [](uint16_t* counts) { counts[18] += 1; }), "an index between columns");
  return group.report();
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<std::string> asked(arguments + 1, arguments + count);
  bool good = true;
  for (const std::string& isa : asked.empty() ? available_isas() : asked) {
    const Kernels& k = choose_kernels(isa);
    for (int R = 1; R <= kMaxTileRows; R++)
      for (bool fraction : {false, true})
        if (R == 1 || k.sparse[R]) good &= test_sparse(k, R, fraction);
    good &= test_others(k);
    good &= test_pack_conv(k);
    good &= test_layers(k);
    if (has_int8(k)) good &= test_int8(k) && test_low_precision(k, true);
    if (has_bfloat16(k)) good &= test_low_precision(k, false);
  }
  return good ? 0 : 1;
}
