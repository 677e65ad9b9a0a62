// Some channels of a value, as a view: it costs no time.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

struct SliceAttributes {
  int first, channels;
};

class Slice : public Operation {
 public:
  explicit Slice(const SliceAttributes& attributes) : a_(attributes) {}
  Shape shape(std::span<const Shape> inputs) const override {
    expect_count(inputs, 1, 1);
    if (inputs[0].domain != Domain::map && inputs[0].domain != Domain::rois)
      throw std::invalid_argument("a slice reads a feature map or RoIs");
    if (a_.first < 0 || a_.channels < 1 || a_.first > inputs[0].channels - a_.channels)
      throw std::invalid_argument("a slice reaches beyond the channels of its input");
    Shape shape = inputs[0];
    shape.channels = a_.channels;
    return shape;
  }
  Format format(std::span<const Format> inputs) const override {
    if (a_.first % channels_per_element(inputs[0].type))
      throw std::invalid_argument("a slice begins inside a packed element");
    return inputs[0];
  }
  Needs needs(std::span<const Shape>, size_t) const override { return {0, 0, false}; }
  int view() const override { return a_.first; }
  void run(Context&, const Step&) const override {}

 private:
  SliceAttributes a_;
};

}  // namespace sparsedet
