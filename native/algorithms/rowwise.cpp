// The algorithm `rowwise`: one output channel after the other, for small feature maps.
#include "algorithms/direct.h"

namespace sparsedet {

namespace {

bool eligible(const ConvProblem& p) {
  const int pixels = p.out_height * p.out_width;
  return !p.rois && !p.shape.depthwise() && p.shape.in_type == ElementType::float32 && pixels > 0 &&
         pixels <= p.rowwise_pixels;
}

double fraction(ElementType, double element_density) {
  return 0.26 + 0.50 * element_density;
}

// Beside the rates of `sparse` and `dense`, which small maps do not reach: there it takes 0.55 to
// 0.95 of the time of `sparse`.
double time(const ConvProblem& p, double element_density) {
  return taps(p) * (element_density / 0.8);
}

std::unique_ptr<PackedConvolution> pack(const Kernels& kernels, const ConvProblem& problem,
                                        const Weights& weights, const float* bias, Packer packer) {
  return std::make_unique<DirectConvolution>(pack_conv(kernels, problem.shape, weights, bias, false,
                                                       false, packer, PackedLayout::rowwise));
}

std::unique_ptr<PackedConvolution> unpack(const Kernels& kernels, const ConvProblem& problem,
                                          std::span<const std::byte>& packed,
                                          std::shared_ptr<const void> owner, const float* bias) {
  return std::make_unique<DirectConvolution>(unpack_conv(
      kernels, problem.shape, packed, std::move(owner), bias, false, PackedLayout::rowwise));
}

}  // namespace

extern const Algorithm rowwise_algorithm;
constexpr Algorithm rowwise_algorithm{"rowwise", eligible, fraction, time, pack, unpack};

}  // namespace sparsedet
