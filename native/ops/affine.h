// Each channel of a map times its scale plus its offset, and an activation: a batch norm that no
// convolution could take.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

struct AffineAttributes {
  Activation activation;
};

class Affine : public Operation {
 public:
  // scales, offsets: of each channel.
  Affine(const AffineAttributes& attributes, std::vector<float> scales, std::vector<float> offsets);
  Shape shape(std::span<const Shape> inputs) const override;
  Format format(std::span<const Format> inputs) const override;
  bool in_place(size_t) const override { return true; }
  size_t weight_bytes() const override {
    return (scales_.size() + offsets_.size()) * sizeof(float);
  }
  void run(Context& context, const Step& step) const override;

 private:
  AffineAttributes a_;
  std::vector<float> scales_, offsets_;
};

}  // namespace sparsedet
