// Mean over the feature map of each RoI.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

class Mean : public Operation {
 public:
  Shape shape(std::span<const Shape> inputs) const override;
  Format format(std::span<const Format>) const override { return {}; }
  void run(Context& context, const Step& step) const override;
};

// As float32 [block][1][1][channel][lanes].
void mean_rois(Context& context, const Rois& in, const Rois& out);

}  // namespace sparsedet
