// Masks: of each row's RoI, the sigmoid of the channel of the row's label.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

struct MasksAttributes {
  bool background;  // the first channel is that of the background, which no label has
};

// Inputs: RoIs of mask logits, one channel for each class; the rows, whose boxes are the RoIs'.
class Masks : public Operation {
 public:
  explicit Masks(const MasksAttributes& attributes) : a_(attributes) {}
  Shape shape(std::span<const Shape> inputs) const override;
  Format format(std::span<const Format> inputs) const override;
  void run(Context& context, const Step& step) const override;

 private:
  MasksAttributes a_;
};

}  // namespace sparsedet
