// An activation of a map, where no convolution has it as its end.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

struct ActivateAttributes {
  Activation activation;
};

class Activate : public Operation {
 public:
  explicit Activate(const ActivateAttributes& attributes) : a_(attributes) {}
  Shape shape(std::span<const Shape> inputs) const override;
  Format format(std::span<const Format> inputs) const override;
  bool in_place(size_t) const override { return true; }
  void run(Context& context, const Step& step) const override;

 private:
  ActivateAttributes a_;
};

}  // namespace sparsedet
