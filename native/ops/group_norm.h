// Group normalisation of a map: each group of channels gets mean 0 and variance 1.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

struct GroupNormAttributes {
  int groups;  // of neighbouring channels
  float eps;   // is added to the variance
  Activation activation;
};

class GroupNorm : public Operation {
 public:
  // scales, offsets: [channels], of what is normalised.
  GroupNorm(const GroupNormAttributes& attributes, std::vector<float> scales,
            std::vector<float> offsets)
      : a_(attributes), scales_(std::move(scales)), offsets_(std::move(offsets)) {}
  Shape shape(std::span<const Shape> inputs) const override;
  Format format(std::span<const Format> inputs) const override;
  bool in_place(size_t) const override { return true; }
  size_t weight_bytes() const override {
    return (scales_.size() + offsets_.size()) * sizeof(float);
  }
  void run(Context& context, const Step& step) const override;

 private:
  GroupNormAttributes a_;
  std::vector<float> scales_, offsets_;
};

}  // namespace sparsedet
