// Proposals of a region proposal network: maps of logits and deltas of one or several levels ->
// boxes.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

struct ProposalsAttributes {
  std::vector<AnchorLevel> levels;
  Box box_weights;    // divisors of the deltas
  float delta_clamp;  // largest dw and dh
  int pre_nms;        // boxes of each level before NMS
  int count;          // boxes after NMS, of all levels
  float nms_threshold;
  bool remove_empty;
  float min_size;         // shorter or narrower boxes are dropped; 0: none
  float score_threshold;  // boxes whose objectness is less are dropped; 0: none
  bool inclusive;         // clipping and NMS count the last pixel as part of the proposal
};

// Inputs: the logits of each level [anchors], the deltas of each level [4 * anchors], the image.
class Proposals : public Operation {
 public:
  explicit Proposals(const ProposalsAttributes& attributes) : a_(attributes) {}
  Shape shape(std::span<const Shape> inputs) const override;
  Format format(std::span<const Format> inputs) const override;
  void run(Context& context, const Step& step) const override;

 private:
  ProposalsAttributes a_;
};

}  // namespace sparsedet
