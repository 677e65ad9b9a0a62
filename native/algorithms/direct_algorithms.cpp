// `sparse` skips the zeros, `dense` keeps them, which is faster where there are few.
#include "algorithms/direct.h"

namespace sparsedet {

namespace {

template <bool dense>
std::unique_ptr<PackedConvolution> pack(const Kernels& kernels, const ConvProblem& problem,
                                        const Weights& weights, const float* bias, Packer packer) {
  return std::make_unique<DirectConvolution>(
      pack_conv(kernels, problem.shape, weights, bias, problem.rois, dense, packer));
}

std::unique_ptr<PackedConvolution> unpack(const Kernels& kernels, const ConvProblem& problem,
                                          std::span<const std::byte>& packed,
                                          std::shared_ptr<const void> owner, const float* bias) {
  return std::make_unique<DirectConvolution>(
      unpack_conv(kernels, problem.shape, packed, std::move(owner), bias, problem.rois));
}

bool eligible(const ConvProblem& p) {
  return !p.shape.depthwise();
}

// Zeros save multiplications, but finding the other weights takes time, and the fewer rows share
// an activation, the more loads there are.
double sparse_fraction(ElementType type, double element_density) {
  if (type == ElementType::int8) return 0.55 + 0.30 * element_density;
  return 0.56 + 0.26 * element_density;
}

double dense_fraction(ElementType type, double) {
  return type == ElementType::int8 ? 0.87 : 0.90;
}

double sparse_time(const ConvProblem& p, double element_density) {
  return taps(p) * (element_density / sparse_fraction(p.shape.in_type, element_density));
}

double dense_time(const ConvProblem& p, double) {
  return taps(p) * (1 / dense_fraction(p.shape.in_type, 1));
}

}  // namespace

extern const Algorithm sparse_algorithm, dense_algorithm;
constexpr Algorithm sparse_algorithm{"sparse",    eligible,    sparse_fraction,
                                     sparse_time, pack<false>, unpack};
constexpr Algorithm dense_algorithm{"dense",    eligible,   dense_fraction,
                                    dense_time, pack<true>, unpack};

}  // namespace sparsedet
