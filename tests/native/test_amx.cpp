// The AMX kernels, as machine code, under amx_emulator.h: each against plain loops written from the
// contract in kernels.h, then layers against the sparse kernels and a small network against the
// scalar ones. Operands are integers, so that results are equal to the bit; a pass with fractions
// allows the rounding error of a float32 sum. Outputs have canaries around them and in every gap.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "algorithms/algorithm.h"
#include "amx_emulator.h"
#include "graph/executor.h"
#include "kernels/dispatch.h"

namespace {

using namespace sparsedet;

std::mt19937 rng(3);

uint32_t bits(float x) {
  return __builtin_bit_cast(uint32_t, x);
}
float from_bits(uint32_t x) {
  return __builtin_bit_cast(float, x);
}
int draw(int low, int high) {
  return low + static_cast<int>(rng() % (high - low + 1));
}

// Aligned floats with canaries on both sides.
class Canaries {
 public:
  explicit Canaries(size_t size) : size_(size + 2 * kGuard) {
    data_ = static_cast<float*>(std::aligned_alloc(64, divide_up(size_ * 4, 64) * 64));
    for (size_t i = 0; i < size_; i++)
      data_[i] = from_bits(0x7f812345u + i);  // signalling NaNs
    expected_.assign(data_, data_ + size_);
    tolerance_.assign(size_, -1);
  }
  ~Canaries() { std::free(data_); }
  Canaries(const Canaries&) = delete;
  Canaries& operator=(const Canaries&) = delete;
  float* data() { return data_ + kGuard; }
  void put(ptrdiff_t at, float value) { data()[at] = value, expect(at, value); }
  // tolerance: negative for equal bits.
  void expect(ptrdiff_t at, float value, double tolerance = -1) {
    std::memcpy(&expected_[at + kGuard], &value, sizeof value);
    tolerance_[at + kGuard] = tolerance;
  }
  bool good() const {
    for (size_t i = 0; i < size_; i++)
      if (tolerance_[i] < 0 ? bits(data_[i]) != bits(expected_[i])
                            : !(std::abs(data_[i] - expected_[i]) <= tolerance_[i]))
        return false;
    return true;
  }

 private:
  static constexpr size_t kGuard = 64;
  size_t size_;
  float* data_;
  std::vector<float> expected_;
  std::vector<double> tolerance_;
};

class Report {
 public:
  explicit Report(std::string name) : name_(std::move(name)) {}
  void check(bool good, const std::string& what) {
    cases_++;
    if (!good && failed_++ < 5) std::printf("FAILED %s: %s\n", name_.c_str(), what.c_str());
  }
  bool end() const {
    std::printf("%-4s %s: %d cases, %d failed\n", failed_ ? "BAD" : "ok", name_.c_str(), cases_,
                failed_);
    return !failed_;
  }

 private:
  std::string name_;
  int cases_ = 0, failed_ = 0;
};

// ----------------------------------------------------------------------------------- the products

constexpr int L = 16, kColumn = kVectors * L;

struct ProductCase {
  bool int8;
  int row_tiles, columns, P, valid;
  bool first, last, packed, fraction;
  Activation activation;
  int residual;  // none, separate, in place

  std::string text() const {
    char out[200];
    std::snprintf(out, sizeof out,
                  "int8 %d row tiles %d columns %d P %d valid %d first %d last %d packed %d "
                  "fraction %d activation %d residual %d",
                  int8, row_tiles, columns, P, valid, first, last, packed, fraction,
                  static_cast<int>(activation), residual);
    return out;
  }
};

float draw_value(bool fraction) {
  const auto v =
      fraction ? static_cast<float>(rng()) * 0x1p-31f - 1.0f : static_cast<float>(draw(-4, 4));
  return from_bits(to_bfloat16(v) << 16);
}

float draw_element(bool int8, bool fraction) {
  if (int8) return from_bits(static_cast<uint32_t>(rng()));
  return join_bfloat16(draw_value(fraction), draw_value(fraction));
}

// An exact sum, and the magnitude of its terms.
struct Total {
  double value = 0, magnitude = 0;
  int terms = 0;
  void add(double x) { value += x, magnitude += std::abs(x), terms++; }
};

Total products(const ProductCase& c, float start, const float* weights, const float* panel) {
  Total sum;
  sum.add(c.int8 ? static_cast<int32_t>(bits(start)) : start);
  for (int i = 0; i < c.columns; i++) {
    const float w = weights[i / kSquare * kSquare * kSquare + i % kSquare], x = panel[i * kColumn];
    for (int k = 0; k < 4 && c.int8; k++)
      sum.add(static_cast<int8_t>(byte_of(w, k)) * static_cast<int>(byte_of(x, k)));
    if (c.int8) continue;
    sum.add(double{even_of(w)} * even_of(x));
    sum.add(double{odd_of(w)} * odd_of(x));
  }
  return sum;
}

float activated(float x, Activation activation) {
  const float sigmoid = std::clamp(x + 3, 0.0f, 6.0f) * (1.0f / 6);
  if (activation == Activation::hardsigmoid) return sigmoid;
  if (activation == Activation::hardswish) return x * sigmoid;
  return activation == Activation::relu && !(x > 0) ? 0 : x;
}

// The operands of one case, and what must come out.
class Product {
 public:
  explicit Product(const ProductCase& c)
      : c_(c),
        rows_(c.row_tiles * kSquare),
        squares_(divide_up(c.columns, kSquare)),
        weights_(size_t(c.row_tiles) * squares_ * kSquare * kSquare),
        panel_(size_t(c.columns) * kColumn),
        partial_(size_t(rows_) * kColumn),
        out_(size_t(rows_) * kRowStride),
        residual_(size_t(rows_) * kRowStride),
        bias_(rows_),
        scale_(rows_) {
    for (int row = 0; row < rows_; row++)
      for (int i = 0; i < squares_ * kSquare; i++)
        weights_.put(weight_at(row) + i / kSquare * kSquare * kSquare + i % kSquare,
                     i < c.columns ? draw_element(c.int8, c.fraction) : 0);
    for (int i = 0; i < c.columns; i++)  // vectors from P on stay NaN
      for (int j = 0; j < c.P * L; j++)
        panel_.put(i * kColumn + j, draw_element(c.int8, c.fraction));
    for (float& b : bias_)
      b = c.int8 ? static_cast<float>(draw(-99, 299)) : draw_value(c.fraction);
    for (float& s : scale_)
      s = static_cast<float>(draw(-99, 99)) * 2e-5f;
    for (int row = 0; row < rows_ && !c.first; row++)
      for (int j = 0; j < c.P * L; j++)
        partial_.put(row * kColumn + j, c.int8 ? from_bits(static_cast<uint32_t>(draw(-9999, 9999)))
                                               : draw_value(c.fraction));
    a_.rows = !c.packed ? rows_ - 1 : c.int8 ? rows_ / 4 - 1 : rows_ / 2 - 1;
    a_.row_stride = kRowStride;
    a_.residual_scale = 0.37f;
    for (int p = 0; p < c.P; p++) {
      a_.offset[p] = (c.P - 1 - p) * (L + 1) + 1;
      a_.valid[p] = p == c.P - 1 ? c.valid : L;
    }
  }

  bool run(const MatrixKernels& k) {
    for (int p = 0; p < c_.P; p++)
      for (int l = 0; l < L; l++)
        c_.int8 ? expect_int8(p, l) : expect_bfloat16(p, l);
    a_.panel = panel_.data();
    a_.values = weights_.data();
    a_.columns = c_.columns;
    a_.row_tiles = c_.row_tiles;
    a_.vectors = c_.P;
    a_.partial = partial_.data();
    a_.first = c_.first;
    a_.last = c_.last;
    a_.bias = bias_.data();
    a_.scale = scale_.data();
    a_.out = out_.data();
    if (adds()) a_.residual = (c_.residual == 1 ? residual_ : out_).data();
    a_.activation = c_.activation;
    a_.packed_output = c_.packed;
    k.prepare_thread();
    k.product(a_);
    k.release_thread();
    return weights_.good() && panel_.good() && out_.good() && residual_.good() &&
           (c_.last || partial_.good());  // after the last block its content does not matter
  }

 private:
  static constexpr int kRowStride = kVectors * (L + 1) + 2;

  ptrdiff_t weight_at(int row) const {
    return (ptrdiff_t(row / kSquare) * squares_ * kSquare + row % kSquare) * kSquare;
  }
  bool adds() const { return c_.last && c_.residual && (c_.packed || !c_.int8); }
  float residual_of(ptrdiff_t at) {
    if (!adds()) return 0;
    Canaries& from = c_.residual == 1 ? residual_ : out_;
    from.put(at, c_.packed ? draw_element(c_.int8, c_.fraction) : draw_value(c_.fraction));
    return from.data()[at];
  }
  Total sum(int row, int p, int l) {
    const int at = row * kColumn + p * L + l;
    const float start = !c_.first ? partial_.data()[at] : c_.int8 ? 0 : bias_[row];
    return products(c_, start, weights_.data() + weight_at(row), panel_.data() + p * L + l);
  }
  static double tolerance(const Total& t, bool fraction) {
    return fraction ? (t.terms + 2) * 0x1p-24 * t.magnitude : -1;
  }

  void expect_bfloat16(int p, int l) {
    const bool exists = l < a_.valid[p];
    for (int row = 0; row < rows_; row++) {
      Total t = sum(row, p, l);
      if (!c_.last)
        partial_.expect(row * kColumn + p * L + l, static_cast<float>(t.value),
                        tolerance(t, c_.fraction));
      if (!c_.last || c_.packed || row >= a_.rows) continue;
      const ptrdiff_t at = row * kRowStride + a_.offset[p] + l;
      t.add(residual_of(at));
      const float v = activated(static_cast<float>(t.value), c_.activation);
      out_.expect(at, exists ? v : 0, exists ? tolerance(t, c_.fraction) : -1);
    }
    for (int row = 0; c_.last && c_.packed && row < a_.rows; row++) {
      const int even = row / kSquare * 2 * kSquare + row % kSquare;  // and its odd one a tile later
      const ptrdiff_t at = row * kRowStride + a_.offset[p] + l;
      const float added = residual_of(at);
      const auto low = static_cast<float>(sum(even, p, l).value) + even_of(added);
      const auto high = static_cast<float>(sum(even + kSquare, p, l).value) + odd_of(added);
      out_.expect(
          at, exists ? join_bfloat16(activated(low, c_.activation), activated(high, c_.activation))
                     : 0);
    }
  }

  void expect_int8(int p, int l) {
    const bool exists = l < a_.valid[p];
    for (int element = 0; element < rows_ / 4; element++) {
      const ptrdiff_t at = element * kRowStride + a_.offset[p] + l;
      const bool stored = c_.last && c_.packed && element < a_.rows;
      const float added = stored ? residual_of(at) : 0;
      uint32_t bytes[4];
      for (int i = 0; i < 4; i++) {
        const int row = 4 * element + i;
        const auto total = static_cast<int32_t>(sum(row, p, l).value);
        if (!c_.last)
          partial_.expect(row * kColumn + p * L + l, from_bits(static_cast<uint32_t>(total)));
        float v = std::fma(static_cast<float>(total), scale_[row], bias_[row]);
        if (stored && adds())
          v = std::fma(static_cast<float>(byte_of(added, i)), a_.residual_scale, v);
        bytes[i] = static_cast<uint32_t>(std::nearbyint(std::clamp(v, 0.0f, 255.0f)));
        if (c_.last && !c_.packed && row < a_.rows)
          out_.expect(row * kRowStride + a_.offset[p] + l,
                      exists ? activated(v, c_.activation) : 0);
      }
      if (stored) out_.expect(at, exists ? join_bytes(bytes) : 0);
    }
  }

  const ProductCase c_;
  const int rows_, squares_;
  Canaries weights_, panel_, partial_, out_, residual_;
  std::vector<float> bias_, scale_;
  SparseArgs a_ = {};
};

bool test_products(const Kernels& kernels, bool int8) {
  Report report(std::string("amx ") + (int8 ? "int8" : "bf16") + " products");
  const MatrixKernels& k = *(int8 ? kernels.int8_matrix : kernels.bf16_matrix);
  int number = 0;
  // One column, one less than a square, exactly one, one more, several squares and a rest.
  for (int columns : {1, 15, 16, 17, 37})
    for (int row_tiles : {2, 4})
      for (int P = 1; P <= kVectors; P++)
        for (int flags = 0; flags < 8; flags++, number++) {
          ProductCase c{};
          c.int8 = int8;
          c.row_tiles = row_tiles;
          c.columns = columns;
          c.P = P;
          c.first = flags & 1;
          c.last = flags & 2;
          c.packed = flags & 4;
          for (c.valid = L; c.valid > 0; c.valid -= c.valid == L ? 1 : L - 2) {
            c.residual = number % 3;
            c.activation = static_cast<Activation>(rng() % (int8 ? 2 : 4));
            report.check(Product(c).run(k), c.text());
            if (!c.last) break;  // nothing is stored
          }
          if (int8 || c.packed) continue;
          c.valid = L;
          c.fraction = true;
          c.activation = static_cast<Activation>(rng() % 2);
          report.check(Product(c).run(k), c.text());
        }
  return report.end();
}

// ------------------------------------------------------------------------------------- the layers

struct LayerCase {
  ElementType in, out;
  int in_channels, out_channels, kernel, stride, dilation;
  bool residual, rois;
  int height = 5, width = 19;
};

struct Layer {
  ConvProblem problem;
  std::vector<float> weights, bias;
};

Layer make_layer(const LayerCase& c, const Kernels& kernels) {
  Layer layer;
  ConvShape& s = layer.problem.shape;
  const int padding = c.kernel / 2 * c.dilation;
  s = {c.in_channels, c.out_channels, c.kernel, c.kernel, c.stride, padding, padding};
  s.activation = Activation::relu;
  s.dilation = c.dilation;
  s.in_type = c.in;
  s.out_type = c.out;
  if (c.in == ElementType::int8) {
    s.in_quantization = {0.01f, 0};
    s.out_quantization = {0.07f, 0};
    s.residual_quantization = {0.02f, 128};
  }
  layer.problem.rois = c.rois;
  layer.problem.residual = c.residual;
  layer.problem.in_height = c.height;
  layer.problem.in_width = c.width;
  layer.problem.out_height = divide_up(c.height, c.stride);
  layer.problem.out_width = divide_up(c.width, c.stride);
  layer.problem.matrix = c.in == ElementType::int8 ? kernels.int8_matrix : kernels.bf16_matrix;
  for (int64_t i = 0; i < s.weights(); i++)
    layer.weights.push_back(rng() % 3 ? 0 : static_cast<float>(draw(-3, 3)));
  for (int i = 0; i < c.out_channels; i++)
    layer.bias.push_back(static_cast<float>(draw(-9, 9)));
  return layer;
}

std::vector<float> draws(size_t count, int low, int high) {
  std::vector<float> out(count);
  for (float& v : out)
    v = static_cast<float>(draw(low, high));
  return out;
}

std::vector<float> run_on_map(Context& context, const LayerCase& c, const Layer& layer,
                              const PackedConvolution& conv, const std::vector<float>& image,
                              const std::vector<float>& residual_values) {
  const bool pixels = c.in == ElementType::pixels;
  const int padding = layer.problem.shape.padding_top, lanes = context.kernels.lanes;
  FeatureMap in{nullptr, c.in_channels, c.height, pixels ? divide_up(c.width, 2) : c.width,
                padding, lanes,         c.in,     layer.problem.shape.in_quantization,
                padding};
  FeatureMap out{
      nullptr, c.out_channels, layer.problem.out_height, layer.problem.out_width, 0, lanes, c.out,
      {}};
  FeatureMap residual = out;
  Canaries in_memory(in.size()), out_memory(out.size()), residual_memory(residual.size());
  in.data = in_memory.data();
  out.data = out_memory.data();
  residual.data = residual_memory.data();
  clear_border(context, in);
  fill_map(image.data(), c.width, in);
  residual.quantization = layer.problem.shape.residual_quantization;
  fill_map(residual_values.data(), out.width, residual);
  conv.run(context, in, c.residual ? &residual : nullptr, out);
  std::vector<float> result(size_t(out.channels) * out.height * out.width);
  read_map(out, out.width, result.data());
  return result;
}

std::vector<float> run_on_rois(Context& context, const LayerCase& c, const Layer& layer,
                               const PackedConvolution& conv, const std::vector<float>& values,
                               const std::vector<float>& residual_values, int count) {
  const int lanes = kVectors * context.kernels.lanes, blocks = divide_up(count, lanes);
  Rois in{nullptr, blocks, c.in_channels, c.height,
          c.width, lanes,  c.in,          layer.problem.shape.in_quantization};
  Rois out{
      nullptr, blocks, c.out_channels, layer.problem.out_height, layer.problem.out_width, lanes,
      c.out,   {}};
  Rois residual = out;
  residual.quantization = layer.problem.shape.residual_quantization;
  Canaries in_memory(in.size()), out_memory(out.size()), residual_memory(residual.size());
  in.data = in_memory.data();
  out.data = out_memory.data();
  residual.data = residual_memory.data();
  fill_rois(values.data(), count, in);
  fill_rois(residual_values.data(), count, residual);
  conv.run(context, in, c.residual ? &residual : nullptr, out, count, nullptr);
  std::vector<float> result(size_t(count) * out.channels * out.height * out.width);
  read_rois(out, count, result.data());
  return result;
}

// By the matrix unit, from packed weights that went through a cache, and by the sparse kernels.
bool layer_case(const Kernels& kernels, const LayerCase& c) {
  constexpr int count = 19;  // RoIs
  Pool pool(2, false);
  Scratch scratch(2);
  Context context{kernels, pool, scratch};
  const Layer layer = make_layer(c, kernels);
  const size_t number = c.rois ? count : 1, cells = size_t(c.height) * c.width;
  const size_t out_cells = size_t(layer.problem.out_height) * layer.problem.out_width;
  const auto input = draws(number * c.in_channels * cells, 0, 3);
  const auto residual = draws(number * c.out_channels * out_cells, -3, 3);
  const auto run = [&](const PackedConvolution& conv) {
    return c.rois ? run_on_rois(context, c, layer, conv, input, residual, count)
                  : run_on_map(context, c, layer, conv, input, residual);
  };
  const Weights weights(layer.weights.data());
  const Packer packer{&pool, nullptr, nullptr};
  const Algorithm &matrix = find_algorithm("matrix"), &sparse = find_algorithm("sparse");
  const auto packed = matrix.pack(kernels, layer.problem, weights, layer.bias.data(), packer);
  auto span = packed->packed()[0];
  const auto unpacked = matrix.unpack(kernels, layer.problem, span, nullptr, layer.bias.data());
  const auto other = sparse.pack(kernels, layer.problem, weights, layer.bias.data(), packer);
  bool good = matrix.eligible(layer.problem) && span.empty();
  good &= packed->nonzero_elements() == other->nonzero_elements();
  try {
    auto shorter = packed->packed()[0];
    shorter = shorter.first(shorter.size() - 64);
    matrix.unpack(kernels, layer.problem, shorter, nullptr, layer.bias.data());
    good = false;
  } catch (const std::invalid_argument&) {
  }
  const auto expected = run(*other);
  const auto largest = *std::max_element(expected.begin(), expected.end());
  good &= largest > 0 && run(*packed) == expected;
  return good && (c.in == ElementType::int8 || run(*unpacked) == expected);  // no cache holds int8
}

bool test_layers(const Kernels& kernels) {
  Report report("amx layers");
  constexpr auto bf16 = ElementType::bfloat16, int8 = ElementType::int8, f32 = ElementType::float32,
                 pixels = ElementType::pixels;
  std::vector<LayerCase> cases{{pixels, bf16, 3, 9, 7, 2, 1, false, false}};
  for (const ElementType type : {bf16, int8})
    for (const bool rois : {false, true}) {
      cases.push_back({type, type, 7, 5, 1, 1, 1, true, rois});
      cases.push_back({type, f32, 66, 35, 1, 1, 1, false, rois});
      cases.push_back({type, type, 34, 35, 3, 1, 1, true, rois});
      cases.push_back({type, type, 33, 70, 3, 2, 1, false, rois, 7, 7});
      cases.push_back({type, type, 9, 40, 3, 1, 2, false, rois, 6, 6});
      // Several blocks of columns, several chunks of rows.
      cases.push_back({type, type, type == bf16 ? 600 : 1200, 34, 1, 1, 1, true, rois, 2, 5});
      cases.push_back({type, type, 12, 1100, 1, 1, 1, true, rois, 1, 3});
    }
  for (const LayerCase& c : cases)
    report.check(layer_case(kernels, c),
                 (c.in == int8 ? "int8 " : "bf16 ") + std::to_string(c.in_channels) + " -> " +
                     std::to_string(c.out_channels) + ", kernel " + std::to_string(c.kernel) +
                     ", stride " + std::to_string(c.stride) + (c.rois ? ", RoIs" : ""));
  return report.end();
}

// ------------------------------------------------------------------------------------ the network

ConvolutionAttributes conv(int in, int out, int kernel, int stride, bool float32, float threshold) {
  const int pad = kernel / 2;
  return {in,    out,     {kernel, kernel}, {pad, pad, pad, pad}, stride, 1, 1, Activation::relu,
          false, float32, threshold};
}

// image -> normalise -> stem -> pool -> a (1x1) -> b (3x3, stride 1, adds a) -> c (3x3, stride 2)
// -> d (1x1, float32)
std::vector<Tensor> run_network(const Kernels& kernels, const std::string& precision,
                                bool& matrix) {
  const bool int8 = precision == "int8";
  rng.seed(5);
  Executor executor(kernels, 2, false, 29, 45);
  const NormaliseAttributes normalise{{0, 0, 0}, {1, 1, 1}, false, !int8};
  executor.add({"x", {"image"}, normalise}, nullptr, nullptr, "", "");
  const auto add = [&](const char* name, const std::vector<std::string>& inputs,
                       const ConvolutionAttributes& attributes) {
    const auto weights = draws(size_t(attributes.out_channels) * attributes.in_channels *
                                   attributes.kernel[0] * attributes.kernel[1],
                               -1, 1);
    const auto bias = draws(attributes.out_channels, -3, 3);
    const Weights given(weights.data());
    executor.add({name, inputs, attributes}, &given, &bias, "", "");
  };
  add("stem", {"x"}, conv(3, 24, 7, 2, int8, 0));
  MaxPoolAttributes pool{};
  pool.kernel = 3;
  pool.stride = 2;
  std::fill(pool.padding, pool.padding + 4, 1);
  pool.type = int8 ? ElementType::int8 : ElementType::bfloat16;
  pool.clipping_threshold = 255;
  executor.add({"pool", {"stem"}, pool}, nullptr, nullptr, "", "");
  add("a", {"pool"}, conv(24, 40, 1, 1, false, 400));
  add("b", {"a", "a"}, conv(40, 40, 3, 1, false, 3000));
  add("c", {"b"}, conv(40, 70, 3, 2, false, 9000));
  add("d", {"c"}, conv(70, 9, 1, 1, true, 0));
  for (const auto& [name, convolution] : executor.convolutions())
    matrix |= convolution->algorithm().name == std::string("matrix");
  Tensor image{{29, 45, 3}, draws(29 * 45 * 3, 0, 3)};
  executor.plan(29, 45);
  return executor.run_between({{"image", image}}, {"a", "b", "c", "d"});
}

bool test_network(const Kernels& kernels) {
  Report report("amx network");
  for (const char* precision : {"bf16", "int8"}) {
    bool by_matrix = false, by_others = false;
    const auto amx = run_network(kernels, precision, by_matrix);
    const auto scalar = run_network(choose_kernels("scalar"), precision, by_others);
    report.check(by_matrix && !by_others, std::string(precision) + ": the choice of algorithms");
    for (size_t i = 0; i < amx.size(); i++) {
      const auto largest = *std::max_element(scalar[i].data.begin(), scalar[i].data.end());
      report.check(amx[i].shape == scalar[i].shape && largest > 0 && amx[i].data == scalar[i].data,
                   std::string(precision) + ": value " + std::to_string(i));
    }
  }
  return report.end();
}

}  // namespace

int main() {
  bool has = false;
  for (const std::string& isa : available_isas())
    has |= isa == "amx";
  if (!has) {
    std::printf("skipped: this CPU has no AVX-512 with bfloat16\n");
    return 0;
  }
  const Kernels& kernels = choose_kernels("amx");
  bool good = test_products(kernels, false);
  good &= test_products(kernels, true);
  good &= test_layers(kernels);
  good &= test_network(kernels);
  std::printf("%llu instructions were emulated\n",
              static_cast<unsigned long long>(amx_emulator::executed()));
  return good ? 0 : 1;
}
