// A convolution or fully connected layer, with what follows it: bias, another tensor, activation.
#pragma once
#include <memory>
#include <optional>

#include "algorithms/algorithm.h"
#include "ops/operation.h"

namespace sparsedet {

struct ConvolutionAttributes {
  int in_channels, out_channels;
  int kernel[2];   // height, width
  int padding[4];  // top, left, bottom, right; a negative one drops rows or columns
  int stride, dilation;
  int groups;  // 1, or as many as input and output channels: depthwise
  Activation activation;
  bool residual_last;         // the tensor is added after the activation: relu, silu or gelu
  bool float32_output;        // also if the input is not
  Quantization quantization;  // int8: of the output
};

// Inputs: x, and a tensor of the output's shape that is added before or after the activation, or
// not.
class Convolution : public Operation {
 public:
  Convolution(const ConvolutionAttributes& attributes, std::span<const Shape> shapes,
              std::span<const Format> formats);
  // Packs weights [out][in][kh][kw] and bias [out], or null. algorithm: null for the choice of the
  // cost model, from shape and zeros only.
  void pack(const Kernels& kernels, const Weights& weights, const float* bias,
            const Algorithm* algorithm, Packer packer);
  void unpack(const Kernels& kernels, const Algorithm& algorithm, int64_t nonzero,
              std::span<const std::byte> packed, std::shared_ptr<const void> owner,
              const float* bias);
  // Takes the packed weights of another convolution of the same problem.
  void share(const Convolution& other);
  // Whether packed weights of one are those of the other, if they have the same weights.
  bool same_problem(const Convolution& other) const;

  Shape shape(std::span<const Shape> inputs) const override;
  Format format(std::span<const Format>) const override {
    return {problem_.shape.out_type, problem_.shape.out_quantization};
  }
  Needs needs(std::span<const Shape> inputs, size_t input) const override;
  bool in_place(size_t input) const override { return input == 1; }
  size_t weight_bytes() const override { return packed_->bytes(); }
  size_t scratch_floats(const Value& out) const override;
  void run(Context& context, const Step& step) const override;

  const ConvProblem& problem() const { return problem_; }
  const Algorithm& algorithm() const { return *algorithm_; }
  const PackedConvolution& packed() const { return *packed_; }
  int64_t nonzero() const { return nonzero_; }
  // Fraction of the weight elements that are not zero. For bfloat16 it is the one of weights that
  // are zero independently: a pair is stored if either weight is not zero.
  double element_density() const { return element_density_; }

 private:
  ConvolutionAttributes a_;
  ConvProblem problem_;
  const Algorithm* algorithm_ = nullptr;
  std::shared_ptr<const PackedConvolution> packed_;
  int64_t nonzero_ = 0;
  double element_density_ = 0;
};

}  // namespace sparsedet
