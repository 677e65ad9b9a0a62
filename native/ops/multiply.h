// Each channel of a map times its factor.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

struct MultiplyAttributes {};

// Inputs: x, and a map of 1x1 with a factor for each channel.
class Multiply : public Operation {
 public:
  Shape shape(std::span<const Shape> inputs) const override;
  Needs needs(std::span<const Shape>, size_t) const override { return {0, 0, false}; }
  Format format(std::span<const Format> inputs) const override;
  bool in_place(size_t input) const override { return input == 0; }
  void run(Context& context, const Step& step) const override;
};

}  // namespace sparsedet
