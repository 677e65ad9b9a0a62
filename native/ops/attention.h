// Self-attention among the cells of a map, dense and in float32: YOLO11 has one on its smallest map.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

struct AttentionAttributes {
  int heads;
  int key;      // channels of a query, and of a key
  float scale;  // of their products
};

// The channels of each head lie side by side: `key` of the query, `key` of the key, the others of
// the value. The output has the values: those of a cell are the mean of all cells' values, weighted
// by the softmax of its query times their keys.
class Attention : public Operation {
 public:
  explicit Attention(const AttentionAttributes& attributes) : a_(attributes) {}
  Shape shape(std::span<const Shape> inputs) const override;
  Format format(std::span<const Format> inputs) const override { return expect_float32(inputs); }
  size_t scratch_floats(const Value& out) const override;
  void run(Context& context, const Step& step) const override;

 private:
  AttentionAttributes a_;
};

}  // namespace sparsedet
