// Boxes of the network: proposals from the RPN's outputs, detections from the RoI head's.
// Plain scalar code: a few milliseconds an image.
//
// Boxes are xyxy in network input pixels, deltas are (dx, dy, dw, dh).
#pragma once
#include <array>
#include <cstdint>
#include <vector>

namespace sparsedet {

using Box = std::array<float, 4>;

// Position of the background among the class logits.
enum class Background { first, last };

// Fields are named as in Python's ModelConfig, which describes them.
struct BoxParams {
  std::vector<Box> cell_anchors;  // anchors of the cell at the origin
  int anchor_stride;
  Box rpn_box_weights, box_weights;  // divisors of the deltas
  float delta_clamp;                 // largest dw and dh
  int rpn_pre_nms, proposals;
  float rpn_nms_threshold;
  bool rpn_remove_empty;
  bool rpn_inclusive;  // clipping and NMS count the last pixel as part of the proposal
  int num_classes;
  Background background;
  bool background_deltas;
  float score_threshold, nms_threshold;
  int max_detections;
};

// Proposals of one image, best first.
// logits: [height * width * anchors], deltas: [height * width * anchors][4]; anchors vary fastest.
std::vector<Box> find_proposals(const BoxParams& params, const float* logits, const float* deltas,
                                int height, int width, float input_height, float input_width);

struct Detection {
  int label;  // 1..num_classes
  float score;
  Box box;
};

// Detections of one image, best first.
// logits: [rois][num_classes + 1]; deltas: [rois][num_classes (+ 1)][4].
std::vector<Detection> find_detections(const BoxParams& params, const float* logits,
                                       const float* deltas, const std::vector<Box>& rois,
                                       float input_height, float input_width);

}  // namespace sparsedet
