#include "ops/proposals.h"

#include <numeric>

namespace sparsedet {

namespace {

struct Candidate {
  Box box;
  float logit;
};

// Logits [height * width * anchors] and deltas [...][4] of a level; anchors vary fastest.
struct Outputs {
  std::vector<float> logits, deltas;

  Outputs(const FeatureMap& objectness, const FeatureMap& offsets) {
    const int anchors = objectness.channels;
    logits.resize(size_t(objectness.height) * objectness.width * anchors);
    deltas.resize(logits.size() * 4);
    size_t i = 0;
    for (int y = 0; y < objectness.height; y++)
      for (int x = 0; x < objectness.width; x++)
        for (int a = 0; a < anchors; a++, i++) {
          logits[i] = *objectness.at(y, a, x);
          for (int d = 0; d < 4; d++)
            deltas[i * 4 + d] = *offsets.at(y, a * 4 + d, x);
        }
  }
};

float score(float logit) {
  return 1 / (1 + std::exp(-logit));
}

// Appends the boxes of one level that survive NMS, best first.
void find_level(const ProposalsAttributes& attributes, const AnchorLevel& level,
                const Outputs& outputs, int width, const Value& image,
                std::vector<Candidate>& kept) {
  const std::vector<float>& logits = outputs.logits;
  const int anchors = static_cast<int>(level.cell_anchors.size());
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  // Higher logits first, equal ones by index: the order of a stable sort. NaN sorts last: std::sort
  // needs a strict weak order, or it may read out of bounds.
  auto better = [&](int a, int b) {
    const bool number = logits[a] == logits[a];
    if (number != (logits[b] == logits[b])) return number;
    return number && logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  const size_t count = std::min(order.size(), static_cast<size_t>(attributes.pre_nms));
  std::nth_element(order.begin(), order.begin() + count, order.end(), better);
  std::sort(order.begin(), order.begin() + count, better);

  const float last = attributes.inclusive ? 1.0f : 0.0f;
  const float right = static_cast<float>(image.content_width) - last;
  const float bottom = static_cast<float>(image.content_height) - last;
  const size_t enough = kept.size() + attributes.count;
  const int height = static_cast<int>(logits.size()) / (width * anchors);
  const Grid grid(level.stride, image.shape.height, image.shape.width, height, width);
  Suppressor suppressor(attributes.nms_threshold, last);
  for (size_t i = 0; i < count && kept.size() < enough; i++) {
    const int index = order[i], cell = index / anchors;
    const auto x = static_cast<float>(cell % width * grid.x);
    const auto y = static_cast<float>(cell / width * grid.y);
    const Box anchor = shifted(level.cell_anchors[index % anchors], x, y);
    const Box box = decode(&outputs.deltas[static_cast<size_t>(index) * 4], anchor,
                           attributes.box_weights, attributes.delta_clamp, bottom, right);
    if (attributes.remove_empty && !(box[2] > box[0] && box[3] > box[1])) continue;
    if (attributes.min_size > 0 && !at_least(box, attributes.min_size)) continue;
    if (attributes.score_threshold > 0 && !(score(logits[index]) >= attributes.score_threshold))
      break;  // the next ones have no higher score
    if (suppressor.keep(box)) kept.push_back({box, logits[index]});
  }
}

}  // namespace

Shape Proposals::shape(std::span<const Shape> inputs) const {
  const size_t levels = a_.levels.size();
  expect_count(inputs, 2 * levels + 1, 2 * levels + 1);
  expect(inputs, 2 * levels, Domain::image);
  for (size_t i = 0; i < levels; i++) {
    const Shape& logits = expect(inputs, i, Domain::map);
    const Shape& deltas = expect(inputs, levels + i, Domain::map);
    const int anchors = static_cast<int>(a_.levels[i].cell_anchors.size());
    if (logits.channels != anchors || deltas.channels != 4 * anchors ||
        logits.height != deltas.height || logits.width != deltas.width)
      throw std::invalid_argument("logits and deltas do not fit the anchors");
  }
  return {Domain::boxes, 4, 1, 1, a_.count};
}

Format Proposals::format(std::span<const Format> inputs) const {
  return expect_float32(inputs);
}

void Proposals::run(Context&, const Step& step) const {
  const size_t levels = a_.levels.size();
  std::vector<Candidate> kept;
  for (size_t i = 0; i < levels; i++) {
    const FeatureMap& logits = step.inputs[i]->map;
    const Outputs outputs(logits, step.inputs[levels + i]->map);
    find_level(a_, a_.levels[i], outputs, logits.width, *step.inputs.back(), kept);
  }
  if (levels > 1)  // NaN, which no comparison orders, came last in its level
    std::stable_sort(kept.begin(), kept.end(), [](const Candidate& a, const Candidate& b) {
      return (a.logit == a.logit) > (b.logit == b.logit) || a.logit > b.logit;
    });
  kept.resize(std::min(kept.size(), static_cast<size_t>(a_.count)));
  step.out.boxes.clear();
  for (const Candidate& c : kept)
    step.out.boxes.push_back(c.box);
}

}  // namespace sparsedet
