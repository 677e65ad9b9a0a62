// Detections of RetinaNet: class logits and deltas of each anchor of each level -> rows.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

// Fields are named as in Python's RetinaNetOutput, which describes them.
struct RetinaNetAttributes {
  int num_classes;
  std::vector<AnchorLevel> levels;
  Box box_weights;
  float delta_clamp;
  int pre_nms;
  float score_threshold, nms_threshold;
  int max_detections;
  bool clip_first;
};

// Inputs: the logits of each level [anchors * num_classes], the deltas of each level [anchors * 4],
// the image.
class RetinaNetDetections : public Operation {
 public:
  explicit RetinaNetDetections(const RetinaNetAttributes& attributes) : a_(attributes) {}
  Shape shape(std::span<const Shape> inputs) const override;
  Format format(std::span<const Format> inputs) const override;
  void run(Context& context, const Step& step) const override;

 private:
  RetinaNetAttributes a_;
};

}  // namespace sparsedet
