// YOLO's and PicoDet's detections: of each cell of each level class logits and one box -> rows.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

enum class CellBoxes { distances, centre, anchor };

// Fields are named as in Python's CellOutput, which describes them.
struct CellAttributes {
  int num_classes;
  std::vector<int> strides;
  CellBoxes boxes;
  int bins;
  std::vector<std::array<float, 2>> anchors;
  float offset;
  bool objectness, several_labels;
  int pre_nms;
  float score_threshold, nms_threshold;
  int max_detections;
};

// Inputs: the logits of each level [num_classes], the boxes of each level [4 * bins], the logits of
// the objectness of each level [1] if there is one, the image.
class CellDetections : public Operation {
 public:
  explicit CellDetections(const CellAttributes& attributes) : a_(attributes) {}
  Shape shape(std::span<const Shape> inputs) const override;
  Needs needs(std::span<const Shape>, size_t) const override { return {0, 0, false}; }
  Format format(std::span<const Format> inputs) const override;
  void run(Context& context, const Step& step) const override;

 private:
  Box box_of(const FeatureMap& map, int y, int x, size_t level) const;

  CellAttributes a_;
};

}  // namespace sparsedet
