#include "ops/retinanet_detections.h"

#include "ops/dense_candidates.h"

namespace sparsedet {

Shape RetinaNetDetections::shape(std::span<const Shape> inputs) const {
  std::vector<std::vector<int64_t>> channels(2);
  for (const AnchorLevel& level : a_.levels) {
    const auto anchors = static_cast<int64_t>(level.cell_anchors.size());
    channels[0].push_back(anchors * a_.num_classes);
    channels[1].push_back(anchors * 4);
  }
  expect_levels(inputs, channels);
  return {Domain::rows, 7, 1, 1, a_.max_detections};
}

Format RetinaNetDetections::format(std::span<const Format> inputs) const {
  return expect_float32(inputs);
}

void RetinaNetDetections::run(Context& context, const Step& step) const {
  const Value& image = *step.inputs.back();
  const auto bottom = static_cast<float>(image.content_height);
  const auto right = static_cast<float>(image.content_width);
  const size_t levels = a_.levels.size();
  const auto score = [](float logit, int, int) { return sigmoid(logit); };
  std::vector<DenseCandidate> candidates;
  for (size_t i = 0; i < levels; i++)
    append(candidates,
           best_candidates(context, step.inputs[i]->map, {a_.score_threshold, a_.pre_nms}, false,
                           score),
           i);
  const auto box_of = [&](const DenseCandidate& c) {
    const AnchorLevel& level = a_.levels[c.level];
    const FeatureMap& maps = step.inputs[levels + c.level]->map;
    const Grid grid(level.stride, image.shape.height, image.shape.width, maps.height, maps.width);
    const int anchor = c.channel / a_.num_classes;
    const Box box = shifted(level.cell_anchors[anchor], static_cast<float>(c.x * grid.x),
                            static_cast<float>(c.y * grid.y));
    float deltas[4];
    for (int d = 0; d < 4; d++)
      deltas[d] = *maps.at(c.y, anchor * 4 + d, c.x);
    const Box decoded = decode_unclipped(deltas, box, a_.box_weights, a_.delta_clamp);
    return a_.clip_first ? clipped(decoded, bottom, right) : decoded;
  };
  step.out.detections =
      suppress(std::move(candidates), a_.num_classes, a_.nms_threshold, a_.max_detections, box_of);
  for (Detection& d : step.out.detections)
    d.box = clipped(d.box, bottom, right);
}

}  // namespace sparsedet
