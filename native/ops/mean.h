// Mean over the cells of a map, or of the feature map of each RoI.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

class Mean : public Operation {
 public:
  explicit Mean(Domain domain) : domain_(domain) {}
  Shape shape(std::span<const Shape> inputs) const override;
  // Of RoIs float32; a map, float32 or bfloat16, keeps its type.
  Format format(std::span<const Format> inputs) const override;
  void run(Context& context, const Step& step) const override;

 private:
  Domain domain_;
};

// As float32 [block][1][1][channel][lanes].
void mean_rois(Context& context, const Rois& in, const Rois& out);

}  // namespace sparsedet
