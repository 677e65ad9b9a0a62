// A naive algorithm, for the test that one file and one line add an algorithm: each output is one
// product of a row of weights with the inputs under its window. float32 feature maps only.
#include <stdexcept>

#include "algorithms/algorithm.h"

namespace sparsedet {

namespace {

class Im2col : public PackedConvolution {
 public:
  Im2col(const ConvShape& shape, const float* weights, const float* bias)
      : shape_(shape), weights_(weights, weights + shape.weights()), bias_(shape.out_channels) {
    if (bias) bias_.assign(bias, bias + shape.out_channels);
  }
  std::vector<std::span<const std::byte>> packed() const override { return {}; }
  int64_t nonzero_elements() const override { return shape_.weights(); }
  size_t bytes() const override { return (weights_.size() + bias_.size()) * sizeof(float); }
  void run(Context&, const FeatureMap& in, const FeatureMap* residual,
           const FeatureMap& out) const override {
    for (int y = 0; y < out.height; y++)
      for (int x = 0; x < out.width; x++) {
        const std::vector<float> column = gather(in, y, x);
        for (int o = 0; o < out.channels; o++) {
          float sum = bias_[o];
          for (size_t i = 0; i < column.size(); i++)
            sum += weights_[o * column.size() + i] * column[i];
          if (residual) sum += *residual->at(y, o, x);
          *out.at(y, o, x) = shape_.activation == Activation::relu && sum < 0 ? 0 : sum;
        }
      }
  }
  void run(Context&, const Rois&, const Rois*, const Rois&, int, float*) const override {
    throw std::logic_error("im2col runs on feature maps only");
  }

 private:
  std::vector<float> gather(const FeatureMap& in, int y, int x) const {
    std::vector<float> column;
    for (int c = 0; c < in.channels; c++)
      for (int ky = 0; ky < shape_.kernel_height; ky++)
        for (int kx = 0; kx < shape_.kernel_width; kx++) {
          const int row = y * shape_.stride - shape_.padding_top + ky * shape_.dilation;
          const int at = x * shape_.stride - shape_.padding_left + kx * shape_.dilation;
          const bool inside = row >= 0 && at >= 0 && row < in.height && at < in.width;
          column.push_back(inside ? *in.at(row, c, at) : 0);
        }
    return column;
  }

  ConvShape shape_;
  std::vector<float> weights_, bias_;
};

bool eligible(const ConvProblem& p) {
  return !p.rois && p.shape.in_type == ElementType::float32;
}

double fraction(ElementType, double) {
  return 0.01;
}

double time(const ConvProblem& p, double) {
  return taps(p) / fraction(p.shape.in_type, 1);
}

std::unique_ptr<PackedConvolution> pack(const Kernels&, const ConvProblem& problem,
                                        const Weights& weights, const float* bias, Packer) {
  if (!weights.dense) throw std::invalid_argument("im2col takes an array");
  return std::make_unique<Im2col>(problem.shape, weights.dense, bias);
}

std::unique_ptr<PackedConvolution> unpack(const Kernels&, const ConvProblem&,
                                          std::span<const std::byte>&, std::shared_ptr<const void>,
                                          const float*) {
  throw std::invalid_argument("im2col has no packed form");
}

}  // namespace

extern const Algorithm im2col_algorithm;
constexpr Algorithm im2col_algorithm{"im2col", eligible, fraction, time, pack, unpack};

}  // namespace sparsedet
