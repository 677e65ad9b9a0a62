#include "ops/add.h"

#include "ops/rows.h"

namespace sparsedet {

Shape Add::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 2, 2);
  const Shape &a = expect(inputs, 0, Domain::map), &b = expect(inputs, 1, Domain::map);
  if (a.channels != b.channels || a.height != b.height || a.width != b.width)
    throw std::invalid_argument("adds maps of different shapes");
  return a;
}

Format Add::format(std::span<const Format> inputs) const {
  if (inputs[0].type != inputs[1].type) throw std::invalid_argument("adds maps of different types");
  return expect_fractions(inputs[0]);
}

// A depthwise convolution by 1, to which the second map is added.
void Add::run(Context& context, const Step& step) const {
  const FeatureMap &in = step.inputs[0]->map, &other = step.inputs[1]->map, &out = step.out.map;
  const LowPrecisionKernels* low = low_precision_kernels(context, in.type);
  const auto kernel = low ? low->depthwise : context.kernels.depthwise;
  constexpr int slice = 32;  // elements in one unit of work: neighbours in memory
  const int slices = divide_up(in.elements(), slice);
  context.pool.parallel(in.height * slices, [&](int unit, int) {
    constexpr float one[] = {1, 1}, zero[] = {0, 0};
    const int y = unit / slices, first = unit % slices * slice;
    DepthwiseArgs a{};
    a.kernel_height = a.kernel_width = a.stride = a.rows = 1;
    a.weights = one;
    a.bias = zero;
    a.width = in.width;
    a.activation = a_.activation;
    for (int c = first; c < std::min(first + slice, in.elements()); c++) {
      a.source = in.at(y, c, 0);
      a.residual = other.at(y, c, 0);
      a.out = out.at(y, c, 0);
      kernel(a);
    }
  });
}

}  // namespace sparsedet
