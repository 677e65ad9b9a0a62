// Runs the layers on feature maps of exactly the size that the layout asks for, so that the
// compiler's checks see every read outside of them, for every padding and for widths around a
// vector's. What no layer may read is NaN. Operands are small integers: results are exact, and
// compared with plain loops.
#include "test_layers.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "algorithms/algorithm.h"
#include "algorithms/direct.h"
#include "ops/normalise.h"
#include "ops/pool.h"

namespace sparsedet {
extern const Algorithm depthwise_algorithm;
}

namespace {

using namespace sparsedet;

std::mt19937 rng(2);

float draw(int low, int high) {
  return static_cast<float>(low + static_cast<int>(rng() % (high - low + 1)));
}

struct Delete {
  void operator()(float* p) const { ::operator delete(p, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<float, Delete>;

Buffer allocate(FeatureMap& map) {
  const size_t floats = map.size();
  Buffer buffer(static_cast<float*>(::operator new(floats * sizeof(float), std::align_val_t{64})));
  std::fill_n(buffer.get(), floats, std::numeric_limits<float>::quiet_NaN());
  map.data = buffer.get();
  return buffer;
}

struct Case {
  int kernel, stride, before, after, height, width, in_channels, out_channels;
  bool pixels;  // the network input in bfloat16, which holds two pixels in an element
  bool pool;
  bool depthwise = false;

  int out(int length) const { return (length + before + after - kernel) / stride + 1; }
};

// Values [channels][height][width]; zero outside.
struct Image {
  int channels, height, width;
  std::vector<float> values;

  Image(int channels, int height, int width)
      : channels(channels), height(height), width(width), values(channels * height * width) {}
  float& at(int c, int y, int x) { return values[(c * height + y) * width + x]; }
  float read(int c, int y, int x) {
    return y < 0 || x < 0 || y >= height || x >= width ? 0 : at(c, y, x);
  }
};

bool layer_case(const Kernels& k, const Case& c, PackedLayout layout) {
  Pool pool(1, false);
  Scratch scratch(1);
  Context context{k, pool, scratch};
  Image image(c.in_channels, c.height, c.width);
  for (float& v : image.values)
    v = c.pool ? draw(0, 9) : draw(-4, 4);

  const int oh = c.out(c.height), ow = c.out(c.width);
  const int below = (oh - 1) * c.stride - c.before + c.kernel - c.height;
  const int border = std::max({c.before, below, 0}), padding = std::max({c.before, c.after, 0});
  FeatureMap in{nullptr,
                c.in_channels,
                c.height,
                c.pixels ? divide_up(c.width, 2) : c.width,
                border,
                k.lanes,
                c.pixels ? ElementType::pixels : ElementType::float32,
                {},
                padding};
  FeatureMap out{nullptr, c.out_channels, oh, ow, 0, k.lanes};
  const Buffer in_memory = allocate(in), out_memory = allocate(out);
  clear_border(context, in);
  clear_border(context, out);
  if (c.in_channels == 3) {
    std::vector<float> bgr;
    for (int y = 0; y < c.height; y++)
      for (int x = 0; x < c.width; x++)
        for (int channel = 0; channel < 3; channel++)
          bgr.push_back(image.at(channel, y, x));
    const float mean[3] = {}, std[3] = {1, 1, 1};
    normalise(context, bgr.data(), c.width, mean, std, false, in);
  } else {
    for (int channel = 0; channel < c.in_channels; channel++)
      for (int y = 0; y < c.height; y++)
        for (int x = 0; x < divide_up(c.width, k.lanes) * k.lanes; x++)
          *in.at(y, channel, x) = image.read(channel, y, x);
  }

  const int taps = c.kernel * c.kernel;
  const int read = c.depthwise ? 1 : c.in_channels;  // channels that an output channel reads
  std::vector<float> weight(c.out_channels * read * taps), bias(c.out_channels);
  for (float& w : weight)
    w = rng() % 2 ? draw(-3, 3) : 0;
  for (float& b : bias)
    b = draw(-9, 9);
  if (c.pool) {
    pool_map(context, in, c.before, c.before, out);
  } else {
    ConvShape shape{c.in_channels, c.out_channels, c.kernel, c.kernel,
                    c.stride,      c.before,       c.before};
    shape.in_type = in.type;
    if (c.depthwise) shape.groups = c.in_channels;
    if (c.depthwise)
      depthwise_algorithm.pack(k, {shape}, weight.data(), bias.data(), {})
          ->run(context, in, nullptr, out);
    else
      conv_map(context, pack_conv(k, shape, weight.data(), bias.data(), false, false, {}, layout),
               in, nullptr, out);
  }

  for (int o = 0; o < c.out_channels; o++)
    for (int y = 0; y < oh; y++)
      for (int x = 0; x < divide_up(ow, k.lanes) * k.lanes; x++) {
        float expected = c.pool || x >= ow ? 0 : bias[o];
        for (int i = 0; x < ow && i < read * taps; i++) {
          const int channel = c.depthwise ? o : i / taps, ty = i % taps / c.kernel,
                    tx = i % c.kernel;
          const float v =
              image.read(channel, y * c.stride - c.before + ty, x * c.stride - c.before + tx);
          if (!c.pool)
            expected += weight[o * read * taps + i] * v;
          else if (channel == o)
            expected = std::max(expected, v);
        }
        if (*out.at(y, o, x) != expected) return false;
      }
  return true;
}

}  // namespace

bool test_layers(const Kernels& k) {
  int cases = 0, failed = 0;
  const auto check = [&](const Case& c) {
    if (c.out(c.height) < 1 || c.out(c.width) < 1) return;
    cases++;
    const bool rowwise = cases % 2 && !c.pixels;
    if (layer_case(k, c, rowwise ? PackedLayout::rowwise : PackedLayout::row_masks)) return;
    if (failed++ < 5)
      std::printf("FAILED %s layers: kernel %d stride %d padding %d %d size %dx%d pixels %d\n",
                  k.isa, c.kernel, c.stride, c.before, c.after, c.height, c.width, c.pixels);
  };
  std::vector<int> widths{16, 17, 31, 45};  // and those around one and two vectors, small ones too
  for (int n : {1, 2, k.lanes - 1, k.lanes, k.lanes + 1, 2 * k.lanes - 1, 2 * k.lanes + 1})
    widths.push_back(n);
  for (int width : widths)
    for (int height : {1, 16}) {
      for (int before = 0; before <= 6; before++)
        for (int after = 0; after <= 6; after++)
          for (bool pixels : {false, true})
            if (!pixels || (k.bf16 && k.bf16->supported()))
              check({7, 2, before, after, height, width, 3, 4, pixels, false});
      for (int before = 0; before <= 2; before++)
        for (int after = 0; after <= 2; after++) {
          check({3, 2, before, after, height, width, 2, 2, false, true});
          check({3, 2, before, after, height, width, 2, 7, false, false});
        }
      check({3, 1, 1, 1, height, width, 2, 7, false, false});
      for (int kernel : {3, 5})
        for (int stride : {1, 2})
          check({kernel, stride, kernel / 2, kernel / 2, height, width, 7, 7, false, false, true});
      check({1, 1, 0, 0, height, width, 2, 7, false, false});
      for (int after : {-1, 0})
        check({1, 2, 0, after, height, width, 2, 7, false, false});
    }
  std::printf("%-4s %s layers: %d cases, %d failed\n", failed ? "BAD" : "ok", k.isa, cases, failed);
  return !failed;
}
