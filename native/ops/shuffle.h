// The channel shuffle of ShuffleNet: groups of channels take turns.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

struct ShuffleAttributes {
  int groups;
};

// Channel c * groups + g of the output is channel g * C / groups + c of the input, of C channels.
class Shuffle : public Operation {
 public:
  explicit Shuffle(const ShuffleAttributes& attributes) : a_(attributes) {}
  Shape shape(std::span<const Shape> inputs) const override;
  Needs needs(std::span<const Shape>, size_t) const override { return {0, 0, false}; }
  Format format(std::span<const Format> inputs) const override;
  void run(Context& context, const Step& step) const override;

 private:
  ShuffleAttributes a_;
};

}  // namespace sparsedet
