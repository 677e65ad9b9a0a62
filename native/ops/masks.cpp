#include "ops/masks.h"

namespace sparsedet {

Shape Masks::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 2, 2);
  const Shape& logits = expect(inputs, 0, Domain::rois);
  if (logits.count != expect(inputs, 1, Domain::rows).count)
    throw std::invalid_argument("there are not as many RoIs as rows");
  return {Domain::masks, 1, logits.height, logits.width, logits.count};
}

Format Masks::format(std::span<const Format> inputs) const {
  return expect_float32(inputs);
}

void Masks::run(Context& context, const Step& step) const {
  const Rois& logits = step.inputs[0]->rois;
  const std::vector<Detection>& rows = step.inputs[1]->detections;
  std::vector<int> channels;
  for (int r = step.first; r < step.first + step.count; r++) {
    channels.push_back(rows[r].label - (a_.background ? 0 : 1));
    if (channels.back() < 0 || channels.back() >= logits.channels)
      throw std::invalid_argument("no channel is that of label " + std::to_string(rows[r].label));
  }
  const ptrdiff_t cells = ptrdiff_t(logits.height) * logits.width;
  context.pool.parallel(step.count, [&](int r, int) {
    float* out = step.out.masks.data() + (step.first + r) * cells;
    for (int y = 0; y < logits.height; y++)
      for (int x = 0; x < logits.width; x++)
        *out++ = sigmoid(logits.at(r / logits.lanes, y, x, channels[r])[r % logits.lanes]);
  });
}

}  // namespace sparsedet
