#include "ops/activate.h"

#include "ops/rows.h"

namespace sparsedet {

Shape Activate::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 1, 1);
  return expect(inputs, 0, Domain::map);
}

Format Activate::format(std::span<const Format> inputs) const {
  return expect_fractions(inputs[0]);
}

void Activate::run(Context& context, const Step& step) const {
  const FeatureMap &in = step.inputs[0]->map, &out = step.out.map;
  const std::vector<float> ones(padded_channels(in), 1.0f), zeros(ones.size(), 0.0f);
  scale_and_shift(context, in, ones, zeros, a_.activation, out);
}

}  // namespace sparsedet
