// The algorithm `matrix`: dense, by the CPU's matrix unit, in bfloat16 and int8.
#include "algorithms/direct.h"
#include "algorithms/pack_matrix.h"

namespace sparsedet {

namespace {

std::unique_ptr<PackedConvolution> pack(const Kernels& kernels, const ConvProblem& problem,
                                        const Weights& weights, const float* bias, Packer packer) {
  return std::make_unique<DirectConvolution>(
      pack_matrix(kernels, problem.shape, weights, bias, problem.rois, packer));
}

std::unique_ptr<PackedConvolution> unpack(const Kernels& kernels, const ConvProblem& problem,
                                          std::span<const std::byte>& packed,
                                          std::shared_ptr<const void> owner, const float* bias) {
  return std::make_unique<DirectConvolution>(
      unpack_matrix(kernels, problem.shape, packed, std::move(owner), bias, problem.rois));
}

bool eligible(const ConvProblem& p) {
  return p.matrix && !p.shape.depthwise();
}

// Not measured: AMX ran in an emulator only.
double fraction(ElementType, double) {
  return 0;
}

// Assumes half of the unit's peak, until it is measured.
double time(const ConvProblem& p, double) {
  constexpr double assumed = 0.5;
  return taps(p) / (p.matrix->rate * assumed);
}

}  // namespace

extern const Algorithm matrix_algorithm;
constexpr Algorithm matrix_algorithm{"matrix", eligible, fraction, time, pack, unpack};

}  // namespace sparsedet
