// The box side of the network: proposals from RPN outputs, detections from region outputs.
// Plain scalar code: a few milliseconds a photograph.
//
// Boxes are xyxy network input pixels, deltas (dx, dy, dw, dh).
#pragma once
#include <array>
#include <cstdint>
#include <vector>

namespace sparsedet {

using Box = std::array<float, 4>;

struct BoxParams {
  std::vector<Box> cell_anchors;  // of the cell at the map's origin
  int anchor_stride;
  Box rpn_weights, box_weights;  // deltas are divided by these
  float delta_clamp;             // upper limit of dw and dh
  int pre_nms, proposals;
  float rpn_nms_threshold;
  bool remove_empty;
  bool inclusive;  // the last pixel of a proposal belongs to it, in clipping and NMS
  int num_classes;
  bool background_first, background_deltas;
  float score_threshold, nms_threshold;
  int max_detections;
};

// One image's proposals, best first.
// logits: [height * width * anchors], deltas: [... ][4]; anchors are the fastest index.
std::vector<Box> find_proposals(const BoxParams& params, const float* logits, const float* deltas,
                                int height, int width, float input_height, float input_width);

struct Detection {
  int label;  // 1..num_classes
  float score;
  Box box;
};

// One image's detections, best first.
// logits: [regions][num_classes + 1]; deltas: [regions][num_classes (+ 1)][4].
std::vector<Detection> find_detections(const BoxParams& params, const float* logits,
                                       const float* deltas, const std::vector<Box>& regions,
                                       float input_height, float input_width);

}  // namespace sparsedet
