// The sum of two maps, and an activation of it.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

struct AddAttributes {
  Activation activation;
};

class Add : public Operation {
 public:
  explicit Add(const AddAttributes& attributes) : a_(attributes) {}
  Shape shape(std::span<const Shape> inputs) const override;
  Format format(std::span<const Format> inputs) const override;
  bool in_place(size_t) const override { return true; }
  void run(Context& context, const Step& step) const override;

 private:
  AddAttributes a_;
};

}  // namespace sparsedet
