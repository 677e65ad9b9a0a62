// Channels of a feature map or of RoIs become cells.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

struct DepthToSpaceAttributes {
  int block;
};

// The cell (y * block + i, x * block + j) of channel c is the cell (y, x) of channel
// (i * block + j) * C + c, where C are the channels of the output.
class DepthToSpace : public Operation {
 public:
  // Throws std::invalid_argument if a cell of the output would begin inside a packed element.
  DepthToSpace(const DepthToSpaceAttributes& attributes, const std::vector<Shape>& inputs,
               const std::vector<Format>& formats);
  Shape shape(std::span<const Shape> inputs) const override;
  Format format(std::span<const Format> inputs) const override { return inputs[0]; }
  void run(Context& context, const Step& step) const override;

 private:
  void run_map(Context& context, const FeatureMap& in, const FeatureMap& out) const;

  DepthToSpaceAttributes a_;
};

}  // namespace sparsedet
