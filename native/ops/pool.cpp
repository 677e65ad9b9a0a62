#include "ops/pool.h"

#include <algorithm>

namespace sparsedet {

void pool_map(Context& context, const FeatureMap& in, int padding_top, int padding_left,
              const FeatureMap& out) {
  const LowPrecisionKernels* low = low_precision_kernels(context, out.type);
  const auto kernel = low ? low->pool : context.kernels.pool;
  const int inputs = out.type == ElementType::int8 ? 4 : 1;  // else one element to one
  context.pool.parallel(out.height, [&](int y, int) {
    PoolArgs a{};
    a.width = out.width;
    a.scale = 1 / out.quantization.scale;
    for (int c = 0; c < out.elements(); c++) {
      for (int i = 0; i < inputs; i++)
        for (int r = 0; r < 3; r++)
          a.rows[i][r] = in.at(2 * y - padding_top + r, std::min(c * inputs + i, in.elements() - 1),
                               -padding_left);
      a.out = out.at(y, c, 0);
      kernel(a);
    }
  });
}

Shape MaxPool::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 1, 1);
  const Shape& in = expect(inputs, 0, Domain::map);
  if (a_.kernel != 3 || a_.stride != 2)
    throw std::invalid_argument("max pooling is 3x3 of stride 2 here");
  return {Domain::map, in.channels,
          output_length(in.height, a_.kernel, a_.stride, a_.padding[0], a_.padding[2]),
          output_length(in.width, a_.kernel, a_.stride, a_.padding[1], a_.padding[3])};
}

Format MaxPool::format(std::span<const Format> inputs) const {
  if (a_.type == inputs[0].type) return inputs[0];
  if (inputs[0].type != ElementType::float32 || a_.type != ElementType::int8)
    throw std::invalid_argument(
        "max pooling keeps the type of its input, or makes int8 of float32");
  return {a_.type, quantization_of(a_.clipping_threshold, false)};
}

Needs MaxPool::needs(std::span<const Shape> inputs, size_t) const {
  return {border_needed(inputs[0].height, a_.kernel, a_.stride, a_.padding[0], a_.padding[2]),
          std::max({a_.padding[1], a_.padding[3], 0})};
}

void MaxPool::run(Context& context, const Step& step) const {
  pool_map(context, step.inputs[0]->map, a_.padding[0], a_.padding[1], step.out.map);
}

}  // namespace sparsedet
