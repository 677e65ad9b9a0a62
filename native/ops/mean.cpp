#include "ops/mean.h"

#include <algorithm>

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
    }
  });
}

Shape Mean::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 1, 1);
  const Shape& in = expect(inputs, 0, Domain::rois);
  return {Domain::rois, in.channels, 1, 1, in.count};
}

void Mean::run(Context& context, const Step& step) const {
  mean_rois(context, step.inputs[0]->rois, step.out.rois);
}

}  // namespace sparsedet
