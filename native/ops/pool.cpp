#include "ops/pool.h"

#include <algorithm>
#include <cstring>

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

// Any window; of one cell any type.
static void pool_plain(Context& context, const FeatureMap& in, const MaxPoolAttributes& a,
                       const FeatureMap& out) {
  const int excess = static_cast<int>(out.stride()) - out.margin() - out.width;
  context.pool.parallel(out.height, [&](int y, int) {
    const int top = y * a.stride - a.padding[0];
    for (int c = 0; c < out.elements(); c++) {
      float* to = out.at(y, c, 0);
      for (int x = 0; x < out.width; x++) {
        const int left = x * a.stride - a.padding[1];
        float best = in.at(std::max(top, 0), c, std::max(left, 0))[0];
        for (int i = std::max(top, 0); i < std::min(top + a.kernel, in.height); i++)
          for (int j = std::max(left, 0); j < std::min(left + a.kernel, in.width); j++)
            best = a.kernel == 1 ? *in.at(i, c, j) : std::max(best, *in.at(i, c, j));
        to[x] = best;
      }
      std::memset(to + out.width, 0, excess * sizeof(float));
    }
  });
}

Shape MaxPool::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 1, 1);
  const Shape& in = expect(inputs, 0, Domain::map);
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
  const FeatureMap &in = step.inputs[0]->map, &out = step.out.map;
  if (a_.kernel == 3 && a_.stride == 2)
    return pool_map(context, in, a_.padding[0], a_.padding[1], out);
  if (a_.kernel > 1 && in.type != ElementType::float32)
    throw std::invalid_argument("max pooling of this window runs in float32 only");
  if (in.type != out.type) throw std::invalid_argument("this max pooling keeps the type");
  pool_plain(context, in, a_, out);
}

}  // namespace sparsedet
