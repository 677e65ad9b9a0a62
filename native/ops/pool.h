// Pooling of a feature map.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

struct MaxPoolAttributes {
  bool negative;  // whether values may be negative
  int kernel, stride;
  int padding[4];             // top, left, bottom, right; never the largest
  ElementType type;           // of the output: that of the input, or int8 of float32
  Quantization quantization;  // int8 of float32: of the output
};

class MaxPool : public Operation {
 public:
  explicit MaxPool(const MaxPoolAttributes& attributes) : a_(attributes) {}
  Shape shape(std::span<const Shape> inputs) const override;
  Format format(std::span<const Format> inputs) const override;
  Needs needs(std::span<const Shape> inputs, size_t input) const override;
  void run(Context& context, const Step& step) const override;

 private:
  MaxPoolAttributes a_;
};

struct AveragePoolAttributes {
  int kernel, stride;
  int padding[4];      // top, left, bottom, right
  bool count_padding;  // whether padding counts, as zeros
};

class AveragePool : public Operation {
 public:
  explicit AveragePool(const AveragePoolAttributes& attributes) : a_(attributes) {}
  Shape shape(std::span<const Shape> inputs) const override;
  Format format(std::span<const Format> inputs) const override;
  void run(Context& context, const Step& step) const override;

 private:
  AveragePoolAttributes a_;
};

// 3x3 max pooling of stride 2, within one type or from float32 to int8. The input is not negative,
// so that zero padding changes nothing.
void pool_map(Context& context, const FeatureMap& in, int padding_top, int padding_left,
              const FeatureMap& out);

}  // namespace sparsedet
