#include "ops/detections.h"

namespace sparsedet {

Shape Detections::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 4, 4);
  const Shape& logits = expect(inputs, 0, Domain::rois);
  const Shape& deltas = expect(inputs, 1, Domain::rois);
  expect(inputs, 2, Domain::boxes);
  expect(inputs, 3, Domain::image);
  if (logits.channels != a_.num_classes + 1 ||
      deltas.channels != 4 * (a_.num_classes + a_.background_deltas) || logits.height != 1 ||
      logits.width != 1 || deltas.height != 1 || deltas.width != 1)
    throw std::invalid_argument("logits and deltas do not fit the classes");
  return {Domain::rows, 7, 1, 1, a_.max_detections};
}

void Detections::run(Context&, const Step& step) const {
  const float *logits = step.inputs[0]->table.data(), *deltas = step.inputs[1]->table.data();
  const std::vector<Box>& rois = step.inputs[2]->boxes;
  const Value& image = *step.inputs[3];
  const auto height = static_cast<float>(image.content_height);
  const auto width = static_cast<float>(image.content_width);
  const int classes = a_.num_classes, columns = classes + 1;
  const int box_columns = classes + a_.background_deltas;
  if (step.inputs[0]->table.size() != rois.size() * columns ||
      step.inputs[1]->table.size() != rois.size() * box_columns * 4)
    throw std::invalid_argument("there are not as many RoIs as boxes");
  const bool background_first = a_.background == Background::first;
  const int first_logit = background_first ? 1 : 0;
  const int first_box = background_first && a_.background_deltas ? 1 : 0;

  struct ScoredRoi {
    int roi, label;  // label from 0
    float score;
  };
  std::vector<ScoredRoi> candidates;
  std::vector<float> exps(columns);
  for (size_t r = 0; r < rois.size(); r++) {
    const float* row = logits + r * columns;
    const float top = *std::max_element(row, row + columns);
    float sum = 0;
    for (int k = 0; k < columns; k++)
      sum += exps[k] = std::exp(row[k] - top);
    for (int k = 0; k < classes; k++) {
      const float score = exps[first_logit + k] / sum;
      if (score > a_.score_threshold) candidates.push_back({static_cast<int>(r), k, score});
    }
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const ScoredRoi& a, const ScoredRoi& b) { return a.score > b.score; });

  std::vector<Suppressor> suppressors(classes, Suppressor(a_.nms_threshold));
  std::vector<Detection>& found = step.out.detections;
  found.clear();
  for (const ScoredRoi& c : candidates) {
    if (found.size() == static_cast<size_t>(a_.max_detections)) break;
    const float* d = deltas + (static_cast<size_t>(c.roi) * box_columns + first_box + c.label) * 4;
    const Box box = decode(d, rois[c.roi], a_.box_weights, a_.delta_clamp, height, width);
    if (a_.min_size > 0 && !at_least(box, a_.min_size)) continue;
    if (suppressors[c.label].keep(box)) found.push_back({c.label + 1, c.score, box});
  }
}

}  // namespace sparsedet
