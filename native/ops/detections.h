// Detections of a two-stage detector: class logits and deltas of each proposal -> rows.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

// Position of the background among the class logits.
enum class Background { first, last };

// Fields are named as in Python's ModelConfig, which describes them.
struct DetectionsAttributes {
  int num_classes;
  Background background;
  bool background_deltas;  // there are deltas for the background, too
  Box box_weights;
  float delta_clamp;
  float score_threshold, nms_threshold;
  int max_detections;
  float min_size;  // shorter or narrower boxes are dropped; 0: none
};

// Inputs: logits [num_classes + 1], deltas [4 * num_classes (+ 4)], proposals, the image.
class Detections : public Operation {
 public:
  explicit Detections(const DetectionsAttributes& attributes) : a_(attributes) {}
  Shape shape(std::span<const Shape> inputs) const override;
  Format format(std::span<const Format>) const override { return {}; }
  void run(Context& context, const Step& step) const override;

 private:
  DetectionsAttributes a_;
};

}  // namespace sparsedet
