#include "ops/dense_candidates.h"

#include <limits>

namespace sparsedet {

namespace {

// A total order: the result does not depend on the order in which candidates are found.
bool better(const DenseCandidate& a, const DenseCandidate& b) {
  if (a.score != b.score) return a.score > b.score;
  if (a.y != b.y) return a.y < b.y;
  return a.x != b.x ? a.x < b.x : a.channel < b.channel;
}

// Afterwards the last is the worst, if there were more.
void keep_best(std::vector<DenseCandidate>& found, size_t most) {
  if (found.size() <= most) return;
  std::nth_element(found.begin(), found.begin() + (most - 1), found.end(), better);
  found.resize(most);
}

// No smaller logit has a score above the threshold. It is a little lower than exact arithmetic
// needs, as scores are rounded to float32.
float lowest_logit(float score_threshold, bool root) {
  double least = score_threshold;
  if (root) least *= std::abs(least);
  least -= 1e-6 * std::abs(least);
  if (!(least > 0)) return -std::numeric_limits<float>::infinity();
  if (least >= 1) return std::numeric_limits<float>::infinity();
  return static_cast<float>(std::log(least / (1 - least)) - 1e-5);
}

// Whether a number reaches its bound: NaN does not. One pass without branches, in vectors.
bool any_reaches(const float* from, const float* bounds, int count) {
  int any = 0;
  for (int i = 0; i < count; i++)
    any |= from[i] >= bounds[i];
  return any;
}

// Of each cell of a row, that no smaller logit has a score as large. False: no logit has.
bool find_bounds(const FeatureMap* objectness, float least, bool root, int y,
                 std::vector<float>& bounds) {
  std::fill(bounds.begin(), bounds.end(), lowest_logit(least, root));
  if (!objectness || !(least > 0)) return true;
  bool any = false;
  for (int x = 0; x < objectness->width; x++) {
    const float factor = sigmoid(*objectness->at(y, 0, x));
    const bool enough = factor >= least;
    bounds[x] =
        enough ? lowest_logit(least / factor, root) : std::numeric_limits<float>::infinity();
    any |= enough;
  }
  return any;
}

}  // namespace

std::vector<DenseCandidate> best_candidates(
    Context& context, const FeatureMap& logits, const CandidateRule& rule, bool root,
    const std::function<float(float logit, int y, int x)>& score) {
  const auto most = static_cast<size_t>(rule.most);
  // What a thread has found. As the order is total, the best of all are among the best of each.
  struct Found {
    std::vector<DenseCandidate> candidates;
    float least;                // the score of the worst that is kept, once `most` are
    std::vector<float> bounds;  // of the present row's cells
  };
  std::vector<Found> threads(context.pool.size());
  for (Found& found : threads)
    found = {{}, rule.score_threshold, std::vector<float>(logits.width)};
  context.pool.parallel(logits.height, [&](int y, int thread) {
    Found& found = threads[thread];
    std::vector<float>& bounds = found.bounds;
    if (!find_bounds(rule.objectness, found.least, root, y, bounds)) return;
    for (int channel = 0; channel < logits.channels; channel++) {
      const float* row = logits.at(y, channel, 0);
      if (!any_reaches(row, bounds.data(), logits.width)) continue;
      for (int x = 0; x < logits.width; x++) {
        if (!(row[x] >= bounds[x])) continue;
        const float s = score(row[x], y, x);
        if (!(s > rule.score_threshold) || s < found.least) continue;
        found.candidates.push_back({s, y, x, channel});
        if (found.candidates.size() < 2 * most) continue;
        keep_best(found.candidates, most);  // a low threshold costs little memory and time
        found.least = found.candidates.back().score;
        find_bounds(rule.objectness, found.least, root, y, bounds);
      }
    }
  });
  std::vector<DenseCandidate> all;
  for (const Found& found : threads)
    all.insert(all.end(), found.candidates.begin(), found.candidates.end());
  keep_best(all, most);
  std::sort(all.begin(), all.end(), better);
  return all;
}

void append(std::vector<DenseCandidate>& all, std::span<const DenseCandidate> of_level,
            size_t level) {
  for (const DenseCandidate& c : of_level) {
    all.push_back(c);
    all.back().level = level;
  }
}

std::vector<Detection> suppress(std::vector<DenseCandidate> candidates, int num_classes,
                                float nms_threshold, int max_detections,
                                const std::function<Box(const DenseCandidate&)>& box) {
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const auto& a, const auto& b) { return a.score > b.score; });
  std::vector<Suppressor> suppressors(num_classes, Suppressor(nms_threshold));
  std::vector<Detection> found;
  for (const DenseCandidate& c : candidates) {
    if (found.size() == static_cast<size_t>(max_detections)) break;
    const Detection d{c.channel % num_classes + 1, c.score, box(c)};
    if (suppressors[d.label - 1].keep(d.box)) found.push_back(d);
  }
  return found;
}

void expect_levels(std::span<const Shape> inputs,
                   const std::vector<std::vector<int64_t>>& channels) {
  const size_t kinds = channels.size(), levels = channels[0].size();
  if (levels == 0) throw std::invalid_argument("there are no levels");
  expect_count(inputs, kinds * levels + 1, kinds * levels + 1);
  for (size_t kind = 0; kind < kinds; kind++)
    for (size_t level = 0; level < levels; level++) {
      const Shape& map = expect(inputs, kind * levels + level, Domain::map);
      if (map.channels != channels[kind][level] || map.height != inputs[level].height ||
          map.width != inputs[level].width)
        throw std::invalid_argument("the maps do not fit each other, the anchors or classes");
    }
  expect(inputs, kinds * levels, Domain::image);
}

}  // namespace sparsedet
