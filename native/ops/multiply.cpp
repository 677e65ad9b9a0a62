#include "ops/multiply.h"

#include "ops/rows.h"

namespace sparsedet {

Shape Multiply::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 2, 2);
  const Shape& in = expect(inputs, 0, Domain::map);
  const Shape& factors = expect(inputs, 1, Domain::map);
  if (factors.channels != in.channels || factors.height != 1 || factors.width != 1)
    throw std::invalid_argument("needs one factor for each channel");
  return in;
}

Format Multiply::format(std::span<const Format> inputs) const {
  if (inputs[0].type != inputs[1].type)
    throw std::invalid_argument("the factors have another type than the map");
  return expect_fractions(inputs[0]);
}

void Multiply::run(Context& context, const Step& step) const {
  const FeatureMap &in = step.inputs[0]->map, &given = step.inputs[1]->map;
  std::vector<float> factors(padded_channels(in)), zeros(factors.size());
  read_map(given, 1, factors.data());
  scale_and_shift(context, in, factors, zeros, Activation::none, step.out.map);
}

}  // namespace sparsedet
