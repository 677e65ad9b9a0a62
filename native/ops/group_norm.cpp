#include "ops/group_norm.h"

#include <cmath>

#include "ops/rows.h"

namespace sparsedet {

Shape GroupNorm::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 1, 1);
  const Shape& in = expect(inputs, 0, Domain::map);
  const auto channels = static_cast<size_t>(in.channels);
  if (in.channels % a_.groups)
    throw std::invalid_argument("has channels that its groups do not divide");
  if (scales_.size() != channels || offsets_.size() != channels)
    throw std::invalid_argument("needs a scale and an offset for each channel");
  return in;
}

Format GroupNorm::format(std::span<const Format> inputs) const {
  return expect_fractions(inputs[0]);
}

void GroupNorm::run(Context& context, const Step& step) const {
  const FeatureMap &in = step.inputs[0]->map, &out = step.out.map;
  // In double, the squares of float32 values lose nothing that matters when the mean is large.
  const std::vector<double> sums = sums_of(context, in);
  std::vector<float> factors(padded_channels(in)), offsets(factors.size());
  const int size = in.channels / a_.groups;
  const double count = double(size) * in.height * in.width;
  for (int first = 0; first < in.channels; first += size) {
    double sum = 0, squares = 0;
    for (int c = first; c < first + size; c++)
      sum += sums[2 * c], squares += sums[2 * c + 1];
    const double mean = sum / count, variance = std::max(squares / count - mean * mean, 0.0);
    const double factor = 1 / std::sqrt(variance + double{a_.eps});
    for (int c = first; c < first + size; c++) {
      factors[c] = static_cast<float>(factor * scales_[c]);
      offsets[c] = static_cast<float>(offsets_[c] - mean * factor * scales_[c]);
    }
  }
  scale_and_shift(context, in, factors, offsets, a_.activation, out);
}

}  // namespace sparsedet
