#include "ops/fcos_detections.h"

#include "ops/dense_candidates.h"

namespace sparsedet {

Shape FcosDetections::shape(std::span<const Shape> inputs) const {
  const size_t levels = a_.levels.size();
  expect_levels(inputs, {std::vector<int64_t>(levels, a_.num_classes),
                         std::vector<int64_t>(levels, 4), std::vector<int64_t>(levels, 1)});
  return {Domain::rows, 7, 1, 1, a_.max_detections};
}

Format FcosDetections::format(std::span<const Format> inputs) const {
  return expect_float32(inputs);
}

void FcosDetections::run(Context& context, const Step& step) const {
  const Value& image = *step.inputs.back();
  const auto bottom = static_cast<float>(image.content_height);
  const auto right = static_cast<float>(image.content_width);
  const size_t levels = a_.levels.size();
  std::vector<DenseCandidate> candidates;
  for (size_t i = 0; i < levels; i++) {
    const FeatureMap &logits = step.inputs[i]->map, &centerness = step.inputs[2 * levels + i]->map;
    const auto score = [&](float logit, int y, int x) {
      return std::sqrt(sigmoid(logit) * sigmoid(*centerness.at(y, 0, x)));
    };
    append(candidates,
           best_candidates(context, logits, {a_.score_threshold, a_.pre_nms}, true, score), i);
  }
  const auto box_of = [&](const DenseCandidate& c) {
    const FcosLevel& level = a_.levels[c.level];
    const FeatureMap& distances = step.inputs[levels + c.level]->map;
    const Grid grid(level.stride, image.shape.height, image.shape.width, distances.height,
                    distances.width);
    const auto x = static_cast<float>(c.x * grid.x), y = static_cast<float>(c.y * grid.y);
    float sides[4];  // left, top, right, bottom
    for (int side = 0; side < 4; side++)
      sides[side] = *distances.at(c.y, side, c.x) * level.size;
    return clipped({x - sides[0], y - sides[1], x + sides[2], y + sides[3]}, bottom, right);
  };
  step.out.detections =
      suppress(std::move(candidates), a_.num_classes, a_.nms_threshold, a_.max_detections, box_of);
}

}  // namespace sparsedet
