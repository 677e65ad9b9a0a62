// The memory plan, the cost model and the executor, on graphs that are no detector. Operands are
// small integers: results are exact.
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "graph/executor.h"
#include "kernels/dispatch.h"

namespace {

using namespace sparsedet;

std::mt19937 rng(1);

float draw(int low, int high) {
  return static_cast<float>(low + static_cast<int>(rng() % (high - low + 1)));
}

std::vector<float> draws(size_t count, int low, int high) {
  std::vector<float> out(count);
  for (float& v : out)
    v = draw(low, high);
  return out;
}

bool report(const char* group, bool good) {
  std::printf("%-4s %s\n", good ? "ok" : "BAD", group);
  return good;
}

// ------------------------------------------------------------------------------------ memory plan

bool test_memory_plan() {
  bool good = true;
  for (int trial = 0; trial < 200; trial++) {
    std::vector<Buffer> buffers(1 + rng() % 30);
    std::vector<Buffer*> all;
    size_t largest = 0;
    for (Buffer& b : buffers) {
      b.from = static_cast<int>(rng() % 20);
      b.to = b.from + static_cast<int>(rng() % 6);
      b.floats = 1 + rng() % 1000;
      all.push_back(&b);
    }
    const size_t total = place(all);
    std::vector<size_t> live(30);
    for (const Buffer& b : buffers) {
      good &= b.offset % 16 == 0 && b.offset + b.floats <= total;
      for (int t = b.from; t <= b.to; t++)
        largest = std::max(largest, live[t] += b.floats);
      for (const Buffer& other : buffers)
        if (&other != &b && other.from <= b.to && b.from <= other.to)
          good &= other.offset + other.floats <= b.offset || b.offset + b.floats <= other.offset;
    }
    good &= total >= largest && total <= 2 * largest;
  }
  return report("memory plan", good);
}

// ------------------------------------------------------------------------------------- cost model

bool test_cost_model() {
  ConvProblem p;
  p.shape = {64, 64, 3, 3, 1, 1, 1};
  bool good = choose_algorithm(p, 0.05).name == std::string("sparse");
  good &= choose_algorithm(p, 1.0).name == std::string("dense");
  double before = 0;
  for (double density = 0.05; density <= 1; density += 0.05) {  // more weights take more time
    const double time = find_algorithm("sparse").time(p, density);
    good &= time > before;
    before = time;
  }
  good &= !find_algorithm("winograd").eligible(p);
  p.rowwise_pixels = 64;
  p.out_height = p.out_width = 8;
  good &= choose_algorithm(p, 0.4).name == std::string("rowwise");
  p.out_width = 9;
  good &= choose_algorithm(p, 0.4).name == std::string("sparse");
  p.rois = true;
  p.in_height = p.in_width = p.out_height = p.out_width = 7;
  good &= taps(p) == 19 * 19;
  good &= choose_algorithm(p, 1.0).name == std::string("winograd");
  good &= choose_algorithm(p, 0.1).name == std::string("sparse");
  p.residual = true;
  good &= choose_algorithm(p, 1.0).name == std::string("dense");
  return report("cost model", good);
}

// ------------------------------------------------------------------------------------------ graph

ConvolutionAttributes conv(int in, int out, int kernel, int stride, bool relu) {
  const int pad = kernel / 2;
  const Activation activation = relu ? Activation::relu : Activation::none;
  return {in,    out, {kernel, kernel}, {pad, pad, pad, pad}, stride, 1, 1, activation, false,
          false, 0};
}

struct Plain {
  int channels, height, width;
  std::vector<float> values;
  float at(int c, int y, int x) const {
    const bool inside = y >= 0 && x >= 0 && y < height && x < width;
    return inside ? values[(size_t(c) * height + y) * width + x] : 0;
  }
};

Plain expected(const Plain& in, const ConvolutionAttributes& a, const std::vector<float>& weights,
               const std::vector<float>& bias, const Plain* residual) {
  Plain out{a.out_channels,
            output_length(in.height, a.kernel[0], a.stride, a.padding[0], a.padding[2]),
            output_length(in.width, a.kernel[1], a.stride, a.padding[1], a.padding[3]),
            {}};
  for (int o = 0; o < out.channels; o++)
    for (int y = 0; y < out.height; y++)
      for (int x = 0; x < out.width; x++) {
        float sum = bias[o];
        const float* w = &weights[size_t(o) * a.in_channels * a.kernel[0] * a.kernel[1]];
        for (int c = 0; c < a.in_channels; c++)
          for (int ky = 0; ky < a.kernel[0]; ky++)
            for (int kx = 0; kx < a.kernel[1]; kx++)
              sum += *w++ *
                     in.at(c, y * a.stride - a.padding[0] + ky, x * a.stride - a.padding[1] + kx);
        if (residual) sum += residual->at(o, y, x);
        out.values.push_back(a.activation == Activation::relu && sum < 0 ? 0 : sum);
      }
  return out;
}

// image -> normalise -> a (3x3) -> slice -> b (3x3 of the slice) -> c (3x3, adds b, its own input)
bool run_graph(const Kernels& kernels, const std::string& algorithm, int threads) {
  Executor executor(kernels, threads, false, 20, 30);
  const auto a = conv(3, 9, 3, 1, true), b = conv(5, 9, 3, 2, false), c = conv(9, 9, 3, 1, true);
  const auto wa = draws(9 * 3 * 9, -1, 1), wb = draws(9 * 5 * 9, -1, 1),
             wc = draws(9 * 9 * 9, -1, 1);
  const auto ba = draws(9, -3, 3), bb = draws(9, -3, 3), bc = draws(9, -3, 3);
  NormaliseAttributes normalise{{0, 0, 0}, {1, 1, 1}, false, false};
  executor.add({"x", {"image"}, normalise}, nullptr, nullptr, "", "");
  const auto add = [&](const char* name, std::vector<std::string> inputs, const auto& attributes,
                       const std::vector<float>& weight, const std::vector<float>& bias) {
    const Weights weights(weight.data());
    executor.add({name, inputs, attributes}, &weights, &bias, algorithm, "");
  };
  add("a", {"x"}, a, wa, ba);
  executor.add({"part", {"a"}, SliceAttributes{2, 5}}, nullptr, nullptr, "", "");
  add("b", {"part"}, b, wb, bb);
  add("c", {"b", "b"}, c, wc, bc);
  bool good = true;
  for (const auto& [height, width] : {std::pair{20, 30}, {5, 47}, {33, 16}, {1, 1}, {20, 30}}) {
    Tensor image{{size_t(height), size_t(width), 3}, draws(size_t(height) * width * 3, 0, 3)};
    executor.plan(height, width);
    const auto out = executor.run_between({{"image", image}}, {"part", "c"});
    Plain x{3, height, width, std::vector<float>(image.data.size())};
    for (int ch = 0; ch < 3; ch++)
      for (int i = 0; i < height * width; i++)
        x.values[size_t(ch) * height * width + i] = image.data[size_t(i) * 3 + ch];
    const Plain ya = expected(x, a, wa, ba, nullptr);
    const size_t cells = size_t(height) * width;
    const Plain part{
        5, height, width, {ya.values.begin() + 2 * cells, ya.values.begin() + 7 * cells}};
    const Plain yb = expected(part, b, wb, bb, nullptr);
    const Plain yc = expected(yb, c, wc, bc, &yb);
    good &= out[0].data == part.values && out[1].data == yc.values;
    good &= out[1].shape == std::vector<size_t>{9, size_t(yc.height), size_t(yc.width)};
  }
  return good;
}

}  // namespace

int main() {
  bool good = test_memory_plan();
  good &= test_cost_model();
  bool graph = true;
  for (const std::string& isa : available_isas())
    for (int threads : {1, 3})
      for (const char* algorithm : {"", "sparse", "dense"})
        graph &= run_graph(choose_kernels(isa), algorithm, threads);
  good &= report("graph", graph);
  good &= report("im2col", run_graph(choose_kernels("scalar"), "im2col", 1));
  return good ? 0 : 1;
}
