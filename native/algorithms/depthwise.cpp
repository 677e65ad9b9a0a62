// The algorithm `depthwise`: each output channel reads the input channel of its own number. On
// feature maps, in float32 and bfloat16; weights are float32 in both.
#include <algorithm>
#include <stdexcept>

#include "algorithms/algorithm.h"

namespace sparsedet {

namespace {

// Channels of whole elements: those beyond the last one have weights and bias zero.
int padded_channels(const ConvShape& shape) {
  return element_count(shape.in_type, shape.in_channels) * channels_per_element(shape.in_type);
}

size_t packed_bytes(const ConvShape& shape) {
  const size_t bytes = size_t(padded_channels(shape)) * shape.taps() * sizeof(float);
  return (bytes + 63) / 64 * 64;
}

class DepthwiseConvolution : public PackedConvolution {
 public:
  // packed: [padded channels][taps] float32, then zeros.
  DepthwiseConvolution(const ConvShape& shape, std::span<const std::byte> packed,
                       std::shared_ptr<const void> owner, const float* bias)
      : shape_(shape), packed_(packed), owner_(std::move(owner)), bias_(padded_channels(shape)) {
    if (bias) std::copy_n(bias, shape.out_channels, bias_.begin());
  }

  std::vector<std::span<const std::byte>> packed() const override { return {packed_}; }
  int64_t nonzero_elements() const override {
    return std::count_if(weights(), weights() + shape_.weights(), [](float w) { return w != 0; });
  }
  size_t bytes() const override { return packed_.size() + bias_.size() * sizeof(float); }

  void run(Context& context, const FeatureMap& in, const FeatureMap* residual,
           const FeatureMap& out) const override {
    const LowPrecisionKernels* low = low_precision_kernels(context, in.type);
    const auto kernel = low ? low->depthwise : context.kernels.depthwise;
    constexpr int slice = 16, rows = 8;  // elements and rows of one unit of work
    const int slices = divide_up(out.elements(), slice);
    context.pool.parallel(divide_up(out.height, rows) * slices, [&](int unit, int) {
      const int y = unit / slices * rows, first = unit % slices * slice;
      DepthwiseArgs a{};
      a.rows = std::min(rows, out.height - y);
      a.source_stride = in.row() * shape_.stride;
      a.out_stride = out.row();
      a.residual_stride = residual ? residual->row() : 0;
      a.row_stride = in.row() * shape_.dilation;
      a.tap_stride = shape_.dilation;
      a.kernel_height = shape_.kernel_height;
      a.kernel_width = shape_.kernel_width;
      a.stride = shape_.stride;
      a.width = out.width;
      a.activation = shape_.activation;
      for (int c = first; c < std::min(first + slice, out.elements()); c++) {
        const int channel = c * channels_per_element(in.type);
        a.source = in.at(y * shape_.stride - shape_.padding_top, c, -shape_.padding_left);
        a.weights = weights() + ptrdiff_t(channel) * shape_.taps();
        a.bias = &bias_[channel];
        a.residual = residual ? residual->at(y, c, 0) : nullptr;
        a.out = out.at(y, c, 0);
        kernel(a);
      }
    });
  }
  void run(Context&, const Rois&, const Rois*, const Rois&, int, float*) const override {
    throw std::logic_error("depthwise runs on feature maps only");
  }

 private:
  const float* weights() const { return reinterpret_cast<const float*>(packed_.data()); }

  ConvShape shape_;
  std::span<const std::byte> packed_;
  std::shared_ptr<const void> owner_;  // keeps `packed_` alive
  std::vector<float> bias_;            // [padded channels]
};

std::unique_ptr<PackedConvolution> pack(const Kernels&, const ConvProblem& problem,
                                        const Weights& weights, const float* bias, Packer packer) {
  const ConvShape& shape = problem.shape;
  const WeightRows rows(weights, shape.out_channels, shape.taps(), packer);
  Memory own;
  const size_t size = packed_bytes(shape);
  const auto memory = (packer.memory ? *packer.memory : own).allocate(size);  // zeros
  auto* to = reinterpret_cast<float*>(memory.get());
  for (int row = 0; row < shape.out_channels; row++, to += shape.taps())
    rows.row(row, [&](size_t i, float w) { to[i] = w; });
  return std::make_unique<DepthwiseConvolution>(
      shape, std::span<const std::byte>(memory.get(), size), memory, bias);
}

std::unique_ptr<PackedConvolution> unpack(const Kernels&, const ConvProblem& problem,
                                          std::span<const std::byte>& packed,
                                          std::shared_ptr<const void> owner, const float* bias) {
  const size_t size = packed_bytes(problem.shape);
  if (packed.size() < size) throw std::invalid_argument("packed weights do not fit the operation");
  auto conv = std::make_unique<DepthwiseConvolution>(problem.shape, packed.first(size),
                                                     std::move(owner), bias);
  packed = packed.subspan(size);
  return conv;
}

bool eligible(const ConvProblem& p) {
  const ElementType type = p.shape.in_type;
  return p.shape.depthwise() && !p.rois && type == p.shape.out_type &&
         (type == ElementType::float32 || type == ElementType::bfloat16);
}

// Loads are the limit of 5x5 filters, memory that of 3x3 filters on wide maps: a mean of both.
double fraction(ElementType type, double) {
  return type == ElementType::float32 ? 0.35 : 0.15;
}

double time(const ConvProblem& p, double) {
  return taps(p) / fraction(p.shape.in_type, 1);
}

}  // namespace

extern const Algorithm depthwise_algorithm;
constexpr Algorithm depthwise_algorithm{"depthwise", eligible, fraction, time, pack, unpack};

}  // namespace sparsedet
