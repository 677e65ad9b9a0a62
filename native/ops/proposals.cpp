#include "ops/proposals.h"

#include <functional>

namespace sparsedet {

namespace {

struct Candidate {
  Box box;
  float logit;
};

// Logits [height * width * anchors] of a level; anchors vary fastest.
std::vector<float> flat_logits(const FeatureMap& map) {
  const size_t anchors = map.channels;
  std::vector<float> logits(anchors * map.height * map.width);
  for (int y = 0; y < map.height; y++)
    for (size_t a = 0; a < anchors; a++) {
      const float* from = map.at(y, static_cast<int>(a), 0);
      float* to = &logits[y * map.width * anchors + a];
      for (int x = 0; x < map.width; x++)
        to[x * anchors] = from[x];
    }
  return logits;
}

// Indices of the `count` best logits, best first; equal ones by index, as a stable sort has them.
// NaN comes last: std::sort needs a strict weak order, or it may read out of bounds.
std::vector<int> best(const std::vector<float>& logits, size_t count) {
  std::vector<float> values(logits.size());
  std::transform(logits.begin(), logits.end(), values.begin(),
                 [](float x) { return x == x ? x : -INFINITY; });
  float least = -INFINITY;
  if (count < values.size()) {
    std::nth_element(values.begin(), values.begin() + count, values.end(), std::greater<>());
    least = values[count];
  }
  std::vector<int> order;
  for (size_t i = 0; i < logits.size(); i++)
    if (!(logits[i] < least)) order.push_back(static_cast<int>(i));
  std::sort(order.begin(), order.end(), [&](int a, int b) {
    const bool number = logits[a] == logits[a];
    if (number != (logits[b] == logits[b])) return number;
    return number && logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  order.resize(std::min(order.size(), count));
  return order;
}

// The boxes of one level that survive NMS, best first.
std::vector<Candidate> find_level(const ProposalsAttributes& attributes, const AnchorLevel& level,
                                  const FeatureMap& objectness, const FeatureMap& deltas,
                                  const Value& image) {
  const std::vector<float> logits = flat_logits(objectness);
  const int anchors = objectness.channels, width = objectness.width;
  const float last = attributes.inclusive ? 1.0f : 0.0f;
  const float right = static_cast<float>(image.content_width) - last;
  const float bottom = static_cast<float>(image.content_height) - last;
  const Grid grid(level.stride, image.shape.height, image.shape.width, objectness.height, width);
  Suppressor suppressor(attributes.nms_threshold, last);
  std::vector<Candidate> kept;
  for (const int index : best(logits, attributes.pre_nms)) {
    if (kept.size() == static_cast<size_t>(attributes.count)) break;
    const int a = index % anchors, x = index / anchors % width, y = index / anchors / width;
    const Box anchor = shifted(level.cell_anchors[a], static_cast<float>(x * grid.x),
                               static_cast<float>(y * grid.y));
    float delta[4];
    for (int d = 0; d < 4; d++)
      delta[d] = *deltas.at(y, a * 4 + d, x);
    const Box box =
        decode(delta, anchor, attributes.box_weights, attributes.delta_clamp, bottom, right);
    if (attributes.remove_empty && !(box[2] > box[0] && box[3] > box[1])) continue;
    if (attributes.min_size > 0 && !at_least(box, attributes.min_size)) continue;
    if (attributes.score_threshold > 0 && !(sigmoid(logits[index]) >= attributes.score_threshold))
      break;  // the next ones have no higher score
    if (suppressor.keep(box)) kept.push_back({box, logits[index]});
  }
  return kept;
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

void Proposals::run(Context& context, const Step& step) const {
  const size_t levels = a_.levels.size();
  std::vector<std::vector<Candidate>> found(levels);
  context.pool.parallel(static_cast<int>(levels), [&](int i, int) {
    found[i] = find_level(a_, a_.levels[i], step.inputs[i]->map, step.inputs[levels + i]->map,
                          *step.inputs.back());
  });
  std::vector<Candidate> kept;
  for (const auto& of_level : found)
    kept.insert(kept.end(), of_level.begin(), of_level.end());
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
