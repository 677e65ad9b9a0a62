// Nearest-neighbour resize of a feature map to the size of another, or by a factor.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

struct ResizeAttributes {
  int factor;  // of both axes; 0: the size of the second input
};

// Inputs: x, and, without a factor, the map whose size the output gets. Row y of the output is row
// floor(y * height of x / height of the output), columns alike: torch's mode "nearest".
class Resize : public Operation {
 public:
  explicit Resize(const ResizeAttributes& attributes) : a_(attributes) {}
  Shape shape(std::span<const Shape> inputs) const override;
  Needs needs(std::span<const Shape>, size_t) const override { return {0, 0, false}; }
  Format format(std::span<const Format> inputs) const override { return inputs[0]; }
  void run(Context& context, const Step& step) const override;

 private:
  ResizeAttributes a_;
};

}  // namespace sparsedet
