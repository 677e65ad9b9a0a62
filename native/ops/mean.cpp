#include "ops/mean.h"

#include <algorithm>

#include "ops/rows.h"

namespace sparsedet {

void mean_rois(Context& context, const Rois& in, const Rois& out) {
  const LowPrecisionKernels* low = low_precision_kernels(context, in.type);
  const auto kernel = low ? low->mean : context.kernels.mean;
  const int per_element = channels_per_element(in.type);
  constexpr int slice = 32;  // elements in one unit of work: neighbours in memory
  const int slices = divide_up(in.elements(), slice);
  context.pool.parallel(in.blocks * slices, [&](int item, int) {
    const int b = item / slices, first = item % slices * slice;
    for (int c = first; c < std::min(first + slice, in.elements()); c++) {
      MeanArgs a{};
      a.source = in.at(b, 0, 0, c);
      a.cell_stride = ptrdiff_t(in.elements()) * in.lanes;
      a.cells = in.height * in.width;
      a.lanes = in.lanes;
      a.scale = in.quantization.scale;
      for (int i = 0; i < per_element && c * per_element + i < in.channels; i++)
        a.out[i] = out.at(b, 0, 0, c * per_element + i);
      kernel(a);
      // The kernel takes bytes as they are.
      const float zero = static_cast<float>(in.quantization.zero_point) * in.quantization.scale;
      for (int i = 0; zero > 0 && i < per_element && a.out[i]; i++)
        for (int l = 0; l < in.lanes; l++)
          a.out[i][l] -= zero;
    }
  });
}

static void mean_map(Context& context, const FeatureMap& in, const FeatureMap& out) {
  const std::vector<double> sums = sums_of(context, in);
  std::vector<float> means(in.channels);
  for (int c = 0; c < in.channels; c++)
    means[c] = static_cast<float>(sums[size_t(c) * 2] / (double(in.height) * in.width));
  fill_map(means.data(), 1, out);
}

Shape Mean::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 1, 1);
  const Shape& in = expect(inputs, 0, domain_ == Domain::map ? Domain::map : Domain::rois);
  return {in.domain, in.channels, 1, 1, in.count};
}

Format Mean::format(std::span<const Format> inputs) const {
  return domain_ == Domain::map ? expect_fractions(inputs[0]) : Format{};
}

void Mean::run(Context& context, const Step& step) const {
  if (domain_ == Domain::map) return mean_map(context, step.inputs[0]->map, step.out.map);
  mean_rois(context, step.inputs[0]->rois, step.out.rois);
}

}  // namespace sparsedet
