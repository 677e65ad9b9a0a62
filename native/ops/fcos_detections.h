// Detections of FCOS: class logits, distances and centerness of each cell of each level -> rows.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

struct FcosLevel {
  float size;  // pixels in one unit of distance
  int stride;  // see Grid
};

// Fields are named as in Python's FcosOutput, which describes them.
struct FcosAttributes {
  int num_classes;
  std::vector<FcosLevel> levels;
  int pre_nms;
  float score_threshold, nms_threshold;
  int max_detections;
};

// Inputs: the logits of each level [num_classes], the distances of each level [4], the centerness
// of each level [1], the image.
class FcosDetections : public Operation {
 public:
  explicit FcosDetections(const FcosAttributes& attributes) : a_(attributes) {}
  Shape shape(std::span<const Shape> inputs) const override;
  Format format(std::span<const Format> inputs) const override;
  void run(Context& context, const Step& step) const override;

 private:
  FcosAttributes a_;
};

}  // namespace sparsedet
