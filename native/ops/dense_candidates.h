// The candidates of a one-stage detector: of each level the best scores, found among the logits of
// all cells, and the detections that all levels' candidates become.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "ops/operation.h"

namespace sparsedet {

// What makes a logit a candidate.
struct CandidateRule {
  float score_threshold;  // its score is larger
  int most;               // candidates of a level
  // Logits of a factor of all scores of a cell, or null: it tells which cells need no look.
  const FeatureMap* objectness = nullptr;
};

// The logit at (y, x) of a channel of a level's map. Channels count classes first, then anchors.
struct DenseCandidate {
  float score;
  int y, x, channel;
  size_t level = 0;
};

// The best candidates of one level, best first; equal scores in the order of y, x, channel.
// score: of a logit at (y, x), never more than its sigmoid, or than the root of that if `root`.
// Only logits whose sigmoid may be large enough get a score.
std::vector<DenseCandidate> best_candidates(
    Context& context, const FeatureMap& logits, const CandidateRule& rule, bool root,
    const std::function<float(float logit, int y, int x)>& score);

// Appends the candidates of a level.
void append(std::vector<DenseCandidate>& all, std::span<const DenseCandidate> of_level,
            size_t level);

// What non-maximum suppression by class leaves of the candidates of all levels, best first; equal
// scores in their order. box: of a candidate; only those that are looked at get one.
std::vector<Detection> suppress(std::vector<DenseCandidate> candidates, int num_classes,
                                float nms_threshold, int max_detections,
                                const std::function<Box(const DenseCandidate&)>& box);

// Throws std::invalid_argument unless the inputs are the maps of all levels, kind after kind, then
// the image. channels: of each kind, channels of each level.
void expect_levels(std::span<const Shape> inputs,
                   const std::vector<std::vector<int64_t>>& channels);

}  // namespace sparsedet
