#include "ops/cell_detections.h"

#include "ops/dense_candidates.h"

namespace sparsedet {

namespace {

// The mean of 0, 1, ..., bins - 1, weighted by the softmax of neighbouring channels.
float expected_bin(const FeatureMap& map, int y, int x, int first, int bins) {
  float largest = *map.at(y, first, x);
  for (int i = 1; i < bins; i++)
    largest = std::max(largest, *map.at(y, first + i, x));
  float sum = 0, weighted = 0;
  for (int i = 0; i < bins; i++) {
    const float e = std::exp(*map.at(y, first + i, x) - largest);
    sum += e;
    weighted += e * static_cast<float>(i);
  }
  return weighted / sum;
}

Box centred(float x, float y, float width, float height) {
  return {x - width / 2, y - height / 2, x + width / 2, y + height / 2};
}

// Of the candidates of a level, best first, the first of each cell.
void keep_one_label(std::vector<DenseCandidate>& candidates, const FeatureMap& map) {
  std::vector<bool> seen(size_t(map.height) * map.width);
  std::erase_if(candidates, [&](const DenseCandidate& c) {
    const size_t cell = size_t(c.y) * map.width + c.x;
    const bool again = seen[cell];
    seen[cell] = true;
    return again;
  });
}

}  // namespace

Shape CellDetections::shape(std::span<const Shape> inputs) const {
  const size_t levels = a_.strides.size();
  const int64_t bins = a_.boxes == CellBoxes::distances ? a_.bins : 1;
  std::vector<std::vector<int64_t>> channels{std::vector<int64_t>(levels, a_.num_classes),
                                             std::vector<int64_t>(levels, 4 * bins)};
  if (a_.objectness) channels.emplace_back(levels, 1);
  expect_levels(inputs, channels);
  return {Domain::rows, 7, 1, 1, a_.max_detections};
}

Format CellDetections::format(std::span<const Format> inputs) const {
  return expect_float32(inputs);
}

Box CellDetections::box_of(const FeatureMap& map, int y, int x, size_t level) const {
  const auto stride = static_cast<float>(a_.strides[level]);
  const float px = static_cast<float>(x) + a_.offset, py = static_cast<float>(y) + a_.offset;
  const bool binned = a_.boxes == CellBoxes::distances && a_.bins > 1;
  float d[4];
  for (int i = 0; i < 4; i++)
    d[i] = binned ? expected_bin(map, y, x, i * a_.bins, a_.bins) : *map.at(y, i, x);
  if (a_.boxes == CellBoxes::distances)
    return {(px - d[0]) * stride, (py - d[1]) * stride, (px + d[2]) * stride, (py + d[3]) * stride};
  if (a_.boxes == CellBoxes::centre)
    return centred((px + d[0]) * stride, (py + d[1]) * stride, std::exp(d[2]) * stride,
                   std::exp(d[3]) * stride);
  for (float& value : d)
    value = 2 * sigmoid(value);
  const auto& [width, height] = a_.anchors[level];
  return centred((px + d[0] - 1) * stride, (py + d[1] - 1) * stride, d[2] * d[2] * width,
                 d[3] * d[3] * height);
}

void CellDetections::run(Context& context, const Step& step) const {
  const Value& image = *step.inputs.back();
  const size_t levels = a_.strides.size();
  std::vector<DenseCandidate> candidates;
  for (size_t i = 0; i < levels; i++) {
    const FeatureMap& logits = step.inputs[i]->map;
    const FeatureMap* objectness = a_.objectness ? &step.inputs[2 * levels + i]->map : nullptr;
    const auto score = [&](float logit, int y, int x) {
      return sigmoid(logit) * (objectness ? sigmoid(*objectness->at(y, 0, x)) : 1.0f);
    };
    auto found = best_candidates(context, logits, {a_.score_threshold, a_.pre_nms, objectness},
                                 false, score);
    if (!a_.several_labels) keep_one_label(found, logits);
    append(candidates, found, i);
  }
  auto& rows = step.out.detections;
  rows = suppress(std::move(candidates), a_.num_classes, a_.nms_threshold, a_.max_detections,
                  [&](const DenseCandidate& c) {
                    return box_of(step.inputs[levels + c.level]->map, c.y, c.x, c.level);
                  });
  for (Detection& d : rows)
    d.box = clipped(d.box, static_cast<float>(image.content_height),
                    static_cast<float>(image.content_width));
}

}  // namespace sparsedet
