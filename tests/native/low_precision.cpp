#include "low_precision.h"

#include <algorithm>
#include <random>
#include <stdexcept>

#include "canaries.h"

using namespace sparsedet;

namespace {

constexpr int kRois = 19;

std::mt19937 rng;

int draw(int low, int high) {
  return low + static_cast<int>(rng() % (high - low + 1));
}

std::vector<float> draws(size_t count, int low, int high) {
  std::vector<float> out(count);
  for (float& v : out)
    v = static_cast<float>(draw(low, high));
  return out;
}

// [out][in][taps], from -most to most. The largest magnitude of a row is what int8 rounds to 127.
std::vector<float> draw_weights(int out, int in, int taps, int most, Zeros zeros) {
  std::vector<float> weights(size_t(out) * in * taps);
  for (int o = 0; o < out; o++)
    for (int tap = 0; tap < taps; tap++) {
      bool zero = false;
      for (int i = 0; i < in; i++) {
        if (i % 4 == 0 && zeros == Zeros::blocks) zero = rng() % 5 < 3;
        if (zeros == Zeros::thirds) zero = rng() % 3 != 0;
        const int w = draw(1, most) * (rng() % 2 ? 1 : -1);  // sums stay exact in float32
        weights[(size_t(o) * in + i) * taps + tap] = static_cast<float>(zero ? 0 : w);
      }
    }
  return weights;
}

void require(bool good) {
  if (!good) throw std::runtime_error("written outside of the output");
}

}  // namespace

std::string LayerCase::text() const {
  const bool is_int8 = in == ElementType::int8;
  return (is_int8 ? "int8 " : "bf16 ") + std::to_string(in_channels) + " -> " +
         std::to_string(out_channels) + ", kernel " + std::to_string(kernel) + ", stride " +
         std::to_string(stride) + ", width " + std::to_string(width) + (rois ? ", RoIs" : "") +
         (shifted ? ", zero points" : "");
}

std::vector<LayerCase> layer_cases() {
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
  for (const bool residual : {false, true}) {
    cases.push_back({int8, int8, 34, 35, 3, 1, 1, residual, false, 5, 19, true});
    cases.push_back({int8, int8, 9, 40, 5, 2, 1, residual, false, 7, 20, true});
    cases.push_back({int8, int8, 34, 35, 1, 1, 1, residual, true, 5, 19, true});
  }
  cases.push_back({int8, f32, 34, 35, 3, 1, 1, false, false, 20, 20, true});
  return cases;
}

Layer::Layer(const LayerCase& c, Zeros zeros) : case_(c) {
  rng.seed(5);
  ConvShape& s = problem_.shape;
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
  if (c.shifted) {
    s.in_quantization = {0.01f, 77};
    s.out_quantization = {0.07f, 31};
    s.activation = Activation::silu;
    s.residual_last = c.residual;
  }
  problem_.rois = c.rois;
  problem_.residual = c.residual;
  problem_.in_height = c.height;
  problem_.in_width = c.width;
  problem_.out_height = divide_up(c.height, c.stride);
  problem_.out_width = divide_up(c.width, c.stride);
  weights_ = draw_weights(c.out_channels, c.in_channels, s.taps(), 3, zeros);
  bias_ = draws(c.out_channels, -9, 9);
  const size_t number = c.rois ? kRois : 1, cells = size_t(c.height) * c.width;
  const size_t out_cells = size_t(problem_.out_height) * problem_.out_width;
  input_ = draws(number * c.in_channels * cells, 0, 3);
  residual_ = draws(number * c.out_channels * out_cells, -3, 3);
}

std::vector<float> Layer::run(const Kernels& kernels, const PackedConvolution& conv) const {
  Pool pool(2, false);
  Scratch scratch(2);
  Context context{kernels, pool, scratch};
  return case_.rois ? run_on_rois(context, conv) : run_on_map(context, conv);
}

std::vector<float> Layer::run_on_map(Context& context, const PackedConvolution& conv) const {
  const LayerCase& c = case_;
  const bool pixels = c.in == ElementType::pixels;
  const int padding = problem_.shape.padding_top, lanes = context.kernels.lanes;
  FeatureMap in{nullptr, c.in_channels, c.height, pixels ? divide_up(c.width, 2) : c.width,
                padding, lanes,         c.in,     problem_.shape.in_quantization,
                padding};
  FeatureMap out{nullptr,
                 c.out_channels,
                 problem_.out_height,
                 problem_.out_width,
                 0,
                 lanes,
                 c.out,
                 problem_.shape.out_quantization};
  FeatureMap residual = out;
  Canaries in_memory(in.size()), out_memory(out.size()), residual_memory(residual.size());
  in.data = in_memory.data();
  out.data = out_memory.data();
  residual.data = residual_memory.data();
  clear_border(context, in);
  fill_map(input_.data(), c.width, in);
  residual.quantization = problem_.shape.residual_quantization;
  fill_map(residual_.data(), out.width, residual);
  conv.run(context, in, c.residual ? &residual : nullptr, out);
  require(in_memory.guarded() && out_memory.guarded() && residual_memory.guarded());
  std::vector<float> result(size_t(out.channels) * out.height * out.width);
  read_map(out, out.width, result.data());
  return result;
}

std::vector<float> Layer::run_on_rois(Context& context, const PackedConvolution& conv) const {
  const LayerCase& c = case_;
  const int lanes = kVectors * context.kernels.lanes, blocks = divide_up(kRois, lanes);
  Rois in{nullptr, blocks, c.in_channels, c.height,
          c.width, lanes,  c.in,          problem_.shape.in_quantization};
  Rois out{nullptr, blocks, c.out_channels, problem_.out_height, problem_.out_width, lanes,
           c.out,   {}};
  Rois residual = out;
  residual.quantization = problem_.shape.residual_quantization;
  Canaries in_memory(in.size()), out_memory(out.size()), residual_memory(residual.size());
  in.data = in_memory.data();
  out.data = out_memory.data();
  residual.data = residual_memory.data();
  fill_rois(input_.data(), kRois, in);
  fill_rois(residual_.data(), kRois, residual);
  conv.run(context, in, c.residual ? &residual : nullptr, out, kRois, nullptr);
  require(in_memory.guarded() && out_memory.guarded() && residual_memory.guarded());
  std::vector<float> result(size_t(kRois) * out.channels * out.height * out.width);
  read_rois(out, kRois, result.data());
  return result;
}

namespace {

ConvolutionAttributes conv(int in, int out, int kernel, int stride, bool float32,
                           Quantization quantization) {
  const int pad = kernel / 2;
  return {in,    out,     {kernel, kernel}, {pad, pad, pad, pad}, stride, 1, 1, Activation::relu,
          false, float32, quantization};
}

}  // namespace

// image -> normalise -> stem -> pool -> a (1x1) -> b (3x3, stride 1, adds a) -> c (3x3, stride 2)
// -> d (1x1, float32)
NetworkRun run_network(const Kernels& kernels, bool int8, Zeros zeros) {
  rng.seed(5);
  Executor executor(kernels, 2, false, 29, 45);
  const NormaliseAttributes normalise{{0, 0, 0}, {1, 1, 1}, false, !int8};
  executor.add({"x", {"image"}, normalise}, nullptr, nullptr, "", "");
  const auto add = [&](const char* name, const std::vector<std::string>& inputs,
                       const ConvolutionAttributes& attributes) {
    const auto weights = draw_weights(attributes.out_channels, attributes.in_channels,
                                      attributes.kernel[0] * attributes.kernel[1], 1, zeros);
    const auto bias = draws(attributes.out_channels, -3, 3);
    const Weights given(weights.data());
    executor.add({name, inputs, attributes}, &given, &bias, "", "");
  };
  add("stem", {"x"}, conv(3, 24, 7, 2, int8, {}));
  MaxPoolAttributes pool{};
  pool.kernel = 3;
  pool.stride = 2;
  std::fill(pool.padding, pool.padding + 4, 1);
  pool.type = int8 ? ElementType::int8 : ElementType::bfloat16;
  pool.quantization = {1, 0};
  executor.add({"pool", {"stem"}, pool}, nullptr, nullptr, "", "");
  add("a", {"pool"}, conv(24, 40, 1, 1, false, {400.0f / 255, 0}));
  add("b", {"a", "a"}, conv(40, 40, 3, 1, false, {3000.0f / 255, 0}));
  add("c", {"b"}, conv(40, 70, 3, 2, false, {9000.0f / 255, 0}));
  add("d", {"c"}, conv(70, 9, 1, 1, true, {}));
  NetworkRun run;
  for (const auto& [name, convolution] : executor.convolutions())
    run.algorithms.push_back(convolution->algorithm().name);
  Tensor image{{29, 45, 3}, draws(29 * 45 * 3, 0, 3)};
  executor.plan(29, 45);
  run.values = executor.run_between({{"image", image}}, {"a", "b", "c", "d"});
  return run;
}

bool equal(const NetworkRun& a, const NetworkRun& b) {
  bool good = a.values.size() == b.values.size();
  for (size_t i = 0; good && i < a.values.size(); i++) {
    const std::vector<float>& data = a.values[i].data;
    good = a.values[i].shape == b.values[i].shape && data == b.values[i].data &&
           *std::max_element(data.begin(), data.end()) > 0;
  }
  return good;
}
