// Winograd's F(4x4, 3x3): a Winograd tile of 4x4 outputs is computed from 6x6 inputs, transformed
// to 36 points, with a dense product over channels at each point: a quarter of the direct
// multiplications. Zeros of the filter do not stay zero at the points. For 3x3 convolutions of
// stride 1 and padding 1 on RoIs, in float32. Source: Lavin and Gray, arXiv 1509.09308.
#include <algorithm>
#include <stdexcept>

#include "algorithms/algorithm.h"
#include "algorithms/direct.h"

namespace sparsedet {

namespace {

constexpr int kTile = 4, kTileInput = 6, kPoints = 36;

Rois tiles_of(float* data, int channels, const Rois& out) {
  return {data,
          out.blocks,
          channels,
          divide_up(out.height, kTile),
          divide_up(out.width, kTile),
          out.lanes,
          ElementType::float32};
}

class WinogradConvolution : public PackedConvolution {
 public:
  WinogradConvolution(const ConvShape& shape, const float* bias)
      : bias_(shape.out_channels, 0.0f),
        relu_(shape.activation == Activation::relu),
        in_channels_(shape.in_channels),
        out_channels_(shape.out_channels) {
    if (bias) bias_.assign(bias, bias + shape.out_channels);
  }
  void add(PackedConv point) { points_.push_back(std::move(point)); }

  // The points are consecutive in memory, except where a memory block ends.
  std::vector<std::span<const std::byte>> packed() const override {
    std::vector<std::span<const std::byte>> spans;
    for (const PackedConv& point : points_)
      spans.push_back(point.packed);
    return spans;
  }
  int64_t nonzero_elements() const override {
    int64_t n = 0;
    for (const PackedConv& point : points_)
      n += sparsedet::nonzero_elements(point);
    return n;
  }
  size_t bytes() const override {
    size_t n = bias_.size() * sizeof(float);
    for (const PackedConv& point : points_)
      n += point.bytes();
    return n;
  }
  size_t scratch_floats(const Rois& out) const override {
    return kPoints * (tiles_of(nullptr, in_channels_, out).size() +
                      tiles_of(nullptr, out_channels_, out).size());
  }
  void run(Context&, const FeatureMap&, const FeatureMap*, const FeatureMap&) const override {
    throw std::logic_error("winograd runs on RoIs only");
  }
  void run(Context& context, const Rois& in, const Rois* residual, const Rois& out, int count,
           float* scratch) const override;

 private:
  std::vector<PackedConv> points_;  // 1x1 convolutions
  std::vector<float> bias_;         // [out_channels]
  bool relu_;
  int in_channels_, out_channels_;
};

void WinogradConvolution::run(Context& context, const Rois& in, const Rois* /*residual*/,
                              const Rois& out, int count, float* scratch) const {
  const Rois sources = tiles_of(scratch, in_channels_, out);
  const Rois products = tiles_of(scratch + kPoints * sources.size(), out_channels_, out);
  const int tiles = sources.height * sources.width;
  const auto vectors = [&](int b) {
    return divide_up(std::min(out.lanes, count - b * out.lanes), context.kernels.lanes);
  };
  constexpr int slice = 64;  // channels in one unit of work
  const int in_slices = divide_up(in.channels, slice), out_slices = divide_up(out.channels, slice);

  context.pool.parallel(out.blocks * tiles * in_slices, [&](int unit, int) {
    const int b = unit / in_slices / tiles, tile = unit / in_slices % tiles;
    const int ty = tile / sources.width, tx = tile % sources.width, c = unit % in_slices * slice;
    WinogradArgs a{};
    for (int i = 0; i < kPoints; i++) {
      const int y = ty * kTile - 1 + i / kTileInput, x = tx * kTile - 1 + i % kTileInput;
      const bool inside = y >= 0 && x >= 0 && y < in.height && x < in.width;
      a.pixels[i] = inside ? in.at(b, y, x, c) : nullptr;
    }
    a.channels = std::min(slice, in.channels - c);
    a.vectors = vectors(b);
    a.points = sources.at(b, ty, tx, c);
    a.point_stride = sources.size();
    context.kernels.winograd_input(a);
  });

  const int chunks = points_[0].chunks;
  context.pool.parallel(kPoints * out.blocks * chunks, [&](int unit, int worker) {
    const int point = unit / chunks / out.blocks, b = unit / chunks % out.blocks;
    Rois from = sources, to = products;
    from.data += point * sources.size();
    to.data += point * products.size();
    conv_rois_unit(context, points_[point], from, nullptr, to, count, worker, unit % chunks,
                   b * tiles, (b + 1) * tiles);
  });

  context.pool.parallel(out.blocks * tiles * out_slices, [&](int unit, int) {
    const int b = unit / out_slices / tiles, tile = unit / out_slices % tiles;
    const int ty = tile / products.width, tx = tile % products.width;
    const int c = unit % out_slices * slice;
    WinogradArgs a{};
    for (int i = 0; i < kTile * kTile; i++) {
      const int y = ty * kTile + i / kTile, x = tx * kTile + i % kTile;
      a.pixels[i] = y < out.height && x < out.width ? out.at(b, y, x, c) : nullptr;
    }
    a.channels = std::min(slice, out.channels - c);
    a.vectors = vectors(b);
    a.points = products.at(b, ty, tx, c);
    a.point_stride = products.size();
    a.bias = bias_.data() + c;
    a.relu = relu_;
    context.kernels.winograd_output(a);
  });
}

// The product over channels at one point.
ConvShape product(const ConvShape& shape) {
  return {shape.in_channels, shape.out_channels, 1, 1, 1, 0, 0};
}

std::unique_ptr<PackedConvolution> pack(const Kernels& kernels, const ConvProblem& problem,
                                        const Weights& weights, const float* bias, Packer packer) {
  const ConvShape& shape = problem.shape;
  constexpr double transform[kTileInput][3] = {{1 / 4., 0, 0},
                                               {-1 / 6., -1 / 6., -1 / 6.},
                                               {-1 / 6., 1 / 6., -1 / 6.},
                                               {1 / 24., 1 / 12., 1 / 6.},
                                               {1 / 24., -1 / 12., 1 / 6.},
                                               {0, 0, 1}};
  const ptrdiff_t row_filters = shape.in_channels, filters = row_filters * shape.out_channels;
  auto conv = std::make_unique<WinogradConvolution>(shape, bias);
  std::vector<float> point(filters), filled;
  const float* weight = weights.dense;
  if (!weight) {  // Winograd layers have few zeros: as an array they are hardly larger
    const size_t length = size_t(shape.in_channels) * 9;
    filled.resize(shape.out_channels * length);
    const WeightRows rows(weights, shape.out_channels, length, packer);
    for (int row = 0; row < shape.out_channels; row++)
      rows.row(row, [&](size_t i, float w) { filled[row * length + i] = w; });
    weight = filled.data();
  }
  for (int i = 0; i < kTileInput; i++)
    for (int j = 0; j < kTileInput; j++) {
      const auto transform_row = [&](int row, int) {
        for (ptrdiff_t f = row * row_filters; f < (row + 1) * row_filters; f++) {
          double sum = 0;
          for (int y = 0; y < 3; y++)
            for (int x = 0; x < 3; x++)
              sum += transform[i][y] * transform[j][x] * double{weight[f * 9 + y * 3 + x]};
          point[f] = static_cast<float>(sum);
        }
      };
      packer.parallel(shape.out_channels, transform_row);
      conv->add(pack_conv(kernels, product(shape), point.data(), nullptr, true, true, packer));
    }
  return conv;
}

std::unique_ptr<PackedConvolution> unpack(const Kernels& kernels, const ConvProblem& problem,
                                          std::span<const std::byte>& packed,
                                          std::shared_ptr<const void> owner, const float* bias) {
  auto conv = std::make_unique<WinogradConvolution>(problem.shape, bias);
  for (int i = 0; i < kPoints; i++)
    conv->add(unpack_conv(kernels, product(problem.shape), packed, owner, nullptr, true));
  return conv;
}

bool eligible(const ConvProblem& p) {
  const ConvShape& s = p.shape;
  const bool plain = s.activation == Activation::none || s.activation == Activation::relu;
  return plain && !s.depthwise() && p.rois && !p.residual && s.in_type == ElementType::float32 &&
         s.out_type == ElementType::float32 && s.kernel_height == 3 && s.kernel_width == 3 &&
         s.stride == 1 && s.dilation == 1 && s.padding_top == 1 && s.padding_left == 1 &&
         p.out_height == p.in_height && p.out_width == p.in_width;
}

double fraction(ElementType, double) {
  return 0.70;
}

// Winograd weights take four times the memory of a dense layer: ten percent faster is not enough.
double time(const ConvProblem& p, double) {
  const int tiles = divide_up(p.out_height, kTile) * divide_up(p.out_width, kTile);
  return tiles * kPoints / fraction(p.shape.in_type, 1) * 1.15;
}

}  // namespace

extern const Algorithm winograd_algorithm;
constexpr Algorithm winograd_algorithm{"winograd", eligible, fraction, time, pack, unpack};

}  // namespace sparsedet
