#include "ops/boxes.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace sparsedet {

namespace {

Box decode(const float* d, const Box& box, const Box& weights, float clamp, float height,
           float width) {
  const float w = box[2] - box[0], h = box[3] - box[1];
  const float cx = box[0] + 0.5f * w, cy = box[1] + 0.5f * h;
  const float x = d[0] / weights[0] * w + cx, y = d[1] / weights[1] * h + cy;
  const float half_w = 0.5f * (std::exp(std::min(d[2] / weights[2], clamp)) * w);
  const float half_h = 0.5f * (std::exp(std::min(d[3] / weights[3], clamp)) * h);
  return {std::clamp(x - half_w, 0.0f, width), std::clamp(y - half_h, 0.0f, height),
          std::clamp(x + half_w, 0.0f, width), std::clamp(y + half_h, 0.0f, height)};
}

// Greedy non-maximum suppression against the boxes kept so far.
class Suppressor {
 public:
  // extra: pixels that a box's area extends beyond its right and lower side.
  explicit Suppressor(float threshold, float extra = 0) : threshold_(threshold), extra_(extra) {}

  // Keeps the box and returns true unless it overlaps a kept one by more than the threshold.
  bool keep(Box b) {
    b[2] += extra_;
    b[3] += extra_;
    const float area = (b[2] - b[0]) * (b[3] - b[1]);
    for (size_t i = 0; i < area_.size(); i++) {
      const float w = std::min(b[2], x1_[i]) - std::max(b[0], x0_[i]);
      const float h = std::min(b[3], y1_[i]) - std::max(b[1], y0_[i]);
      const float overlap = std::max(w, 0.0f) * std::max(h, 0.0f);
      if (overlap / (area + area_[i] - overlap) > threshold_) return false;
    }
    x0_.push_back(b[0]);
    y0_.push_back(b[1]);
    x1_.push_back(b[2]);
    y1_.push_back(b[3]);
    area_.push_back(area);
    return true;
  }

 private:
  const float threshold_, extra_;
  std::vector<float> x0_, y0_, x1_, y1_, area_;
};

}  // namespace

std::vector<Box> find_proposals(const BoxParams& params, const float* logits, const float* deltas,
                                int height, int width, float input_height, float input_width) {
  const int anchors = static_cast<int>(params.cell_anchors.size());
  std::vector<int> order(static_cast<size_t>(height) * width * anchors);
  std::iota(order.begin(), order.end(), 0);
  // Higher logits first, equal ones by index: the order of a stable sort. NaN sorts last: std::sort
  // needs a strict weak order, or it may read out of bounds.
  auto better = [&](int a, int b) {
    const bool number = logits[a] == logits[a];
    if (number != (logits[b] == logits[b])) return number;
    return number && logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  const size_t count = std::min(order.size(), static_cast<size_t>(params.rpn_pre_nms));
  std::nth_element(order.begin(), order.begin() + count, order.end(), better);
  std::sort(order.begin(), order.begin() + count, better);

  std::vector<Box> kept;
  const float last = params.rpn_inclusive ? 1.0f : 0.0f;
  Suppressor suppressor(params.rpn_nms_threshold, last);
  for (size_t i = 0; i < count && kept.size() < static_cast<size_t>(params.proposals); i++) {
    const int index = order[i], cell = index / anchors;
    const auto x = static_cast<float>(cell % width * params.anchor_stride);
    const auto y = static_cast<float>(cell / width * params.anchor_stride);
    Box anchor = params.cell_anchors[index % anchors];
    anchor = {anchor[0] + x, anchor[1] + y, anchor[2] + x, anchor[3] + y};
    const Box box = decode(deltas + static_cast<size_t>(index) * 4, anchor, params.rpn_box_weights,
                           params.delta_clamp, input_height - last, input_width - last);
    if (params.rpn_remove_empty && !(box[2] > box[0] && box[3] > box[1])) continue;
    if (suppressor.keep(box)) kept.push_back(box);
  }
  return kept;
}

std::vector<Detection> find_detections(const BoxParams& params, const float* logits,
                                       const float* deltas, const std::vector<Box>& rois,
                                       float input_height, float input_width) {
  const int classes = params.num_classes, columns = classes + 1;
  const int box_columns = classes + params.background_deltas;
  const bool background_first = params.background == Background::first;
  const int first_logit = background_first ? 1 : 0;
  const int first_box = background_first && params.background_deltas ? 1 : 0;

  struct Candidate {
    int roi, label;  // label from 0
    float score;
  };
  std::vector<Candidate> candidates;
  std::vector<float> exps(columns);
  for (size_t r = 0; r < rois.size(); r++) {
    const float* row = logits + r * columns;
    const float top = *std::max_element(row, row + columns);
    float sum = 0;
    for (int k = 0; k < columns; k++)
      sum += exps[k] = std::exp(row[k] - top);
    for (int k = 0; k < classes; k++) {
      const float score = exps[first_logit + k] / sum;
      if (score > params.score_threshold) candidates.push_back({static_cast<int>(r), k, score});
    }
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.score > b.score; });

  std::vector<Suppressor> suppressors(classes, Suppressor(params.nms_threshold));
  std::vector<Detection> detections;
  for (const Candidate& c : candidates) {
    if (detections.size() == static_cast<size_t>(params.max_detections)) break;
    const float* d = deltas + (static_cast<size_t>(c.roi) * box_columns + first_box + c.label) * 4;
    const Box box =
        decode(d, rois[c.roi], params.box_weights, params.delta_clamp, input_height, input_width);
    if (suppressors[c.label].keep(box)) detections.push_back({c.label + 1, c.score, box});
  }
  return detections;
}

}  // namespace sparsedet
