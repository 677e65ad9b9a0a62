// One way to run a convolution. Each is a file of this folder that defines an `Algorithm`, and a
// line in list.cpp.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "algorithms/pack.h"
#include "tensors/layout.h"

namespace sparsedet {

// A convolution as an algorithm sees it. A feature map may come in other sizes than the one that is
// expected when weights are packed.
struct ConvProblem {
  ConvShape shape;
  bool rois = false;                      // on RoIs, else on a feature map
  bool residual = false;                  // another tensor is added to the output
  const MatrixKernels* matrix = nullptr;  // of its type, if this CPU has them
  int rowwise_pixels = 0;                 // Float32Kernels
  int in_height = 0, in_width = 0, out_height = 0, out_width = 0;  // of a RoI, or expected
};

// The packed weights of one convolution, and the program that runs on them.
class PackedConvolution {
 public:
  virtual ~PackedConvolution() = default;
  // The packed weights: consecutive spans, whose lengths are multiples of 64 bytes.
  virtual std::vector<std::span<const std::byte>> packed() const = 0;
  // Weight elements that are not zero. Whether they are zero as a whole shows only here.
  virtual int64_t nonzero_elements() const = 0;
  // Bytes of weights and biases.
  virtual size_t bytes() const = 0;

  virtual void run(Context& context, const FeatureMap& in, const FeatureMap* residual,
                   const FeatureMap& out) const = 0;
  // count: RoIs in all blocks; scratch: scratch_floats() floats, aligned to 64 bytes.
  virtual void run(Context& context, const Rois& in, const Rois* residual, const Rois& out,
                   int count, float* scratch) const = 0;
  virtual size_t scratch_floats(const Rois& /*out*/) const { return 0; }
};

struct Algorithm {
  const char* name;
  bool (*eligible)(const ConvProblem& problem);
  // Fraction of the peak that it reaches, of the matrix unit's if it runs there; 0: not measured.
  // element_density: fraction of the weight elements that are not zero. Source: measurements
  // (docs/engine.md).
  double (*fraction_of_peak)(ElementType type, double element_density);
  // Expected time, in any unit that is the same for all algorithms of one problem.
  double (*time)(const ConvProblem& problem, double element_density);
  std::unique_ptr<PackedConvolution> (*pack)(const Kernels& kernels, const ConvProblem& problem,
                                             const Weights& weights, const float* bias,
                                             Packer packer);
  // From the bytes of `packed` of this process or another one, which are not trusted. Throws
  // std::invalid_argument if they do not fit. Takes its bytes from the beginning of `packed`.
  std::unique_ptr<PackedConvolution> (*unpack)(const Kernels& kernels, const ConvProblem& problem,
                                               std::span<const std::byte>& packed,
                                               std::shared_ptr<const void> owner,
                                               const float* bias);
};

// All algorithms; of two that are equally fast the first is chosen.
std::span<const Algorithm* const> algorithms();
// Throws std::invalid_argument for an unknown name.
const Algorithm& find_algorithm(const std::string& name);
// The algorithm of the least expected time. Throws std::invalid_argument if none is eligible.
const Algorithm& choose_algorithm(const ConvProblem& problem, double element_density);

// Taps of the filter at all outputs of a RoI, without those in the padding; on a feature map, whose
// size is not known, of one output.
double taps(const ConvProblem& problem);

}  // namespace sparsedet
