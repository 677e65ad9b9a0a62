// RoIAlign: feature maps of one or several levels, and boxes -> a feature map of each box.
#pragma once
#include <optional>

#include "ops/operation.h"

namespace sparsedet {

// Where a box is sampled. aligned: with the half-pixel shift; legacy: without it, and boxes are at
// least one cell long; corners: from corner to corner (ModelConfig.roi_sampling).
enum class RoiSampling { aligned, legacy, corners };

struct RoiAlignAttributes {
  std::vector<float> scales;  // of each level: map cells for each network input pixel
  int size;                   // bins along each axis
  int sampling_ratio;         // samples of a bin along each axis; 0: one for each cell, rounded up
  int step;                   // computes bins 0, step, 2 * step ...
  RoiSampling sampling;
  // Level of a box: floor(canonical_level + log2(sqrt(area) / canonical_size)), within the levels,
  // the first of which is `first_level`. Source: Lin et al., arXiv 1612.03144, equation 1.
  float canonical_size;
  int canonical_level, first_level;
  ElementType type;                          // of the output
  std::optional<Quantization> quantization;  // int8: of the output; else that of the input
  bool relu;
};

class RoiAlign : public Operation {
 public:
  // bias: of each channel, added to the output; empty: none.
  RoiAlign(const Kernels& kernels, const RoiAlignAttributes& attributes, std::vector<float> bias);
  Shape shape(std::span<const Shape> inputs) const override;
  Format format(std::span<const Format> inputs) const override;
  size_t weight_bytes() const override { return bias_.size() * sizeof(float); }
  size_t prepared_floats(std::span<Value* const> inputs) const override;
  void prepare(Context& context, std::span<Value* const> inputs, float* prepared) const override;
  void run(Context& context, const Step& step) const override;

 private:
  int level_of(const Box& box) const;

  RoiAlignAttributes a_;
  std::vector<float> bias_;  // in the form of RoiArgs
};

}  // namespace sparsedet
