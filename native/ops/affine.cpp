#include "ops/affine.h"

#include "ops/rows.h"

namespace sparsedet {

Affine::Affine(const AffineAttributes& attributes, std::vector<float> scales,
               std::vector<float> offsets)
    : a_(attributes), scales_(std::move(scales)), offsets_(std::move(offsets)) {
  if (scales_.size() != offsets_.size())
    throw std::invalid_argument("scales and offsets differ in length");
}

Shape Affine::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 1, 1);
  const Shape& in = expect(inputs, 0, Domain::map);
  if (size_t(in.channels) != scales_.size())
    throw std::invalid_argument("needs one scale for each channel");
  return in;
}

Format Affine::format(std::span<const Format> inputs) const {
  return expect_fractions(inputs[0]);
}

void Affine::run(Context& context, const Step& step) const {
  const FeatureMap& in = step.inputs[0]->map;
  std::vector<float> scales = scales_, offsets = offsets_;
  scales.resize(padded_channels(in));
  offsets.resize(scales.size());
  scale_and_shift(context, in, scales, offsets, a_.activation, step.out.map);
}

}  // namespace sparsedet
