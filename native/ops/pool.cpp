#include "ops/pool.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "ops/rows.h"

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

namespace {

// Any window, of float32 or bfloat16. Rows are combined first, then columns.
struct WindowPool {
  int kernel, stride;
  const int (&padding)[4];
  bool average, count_padding;

  // Of the values of line[0] .. line[width - 1] and their neighbours outside, which are `outside`.
  void columns(const float* line, const FeatureMap& out, float rows, int width, float* to) const {
    for (int x = 0; x < out.width; x++)
      to[x] = line[x * stride];
    for (int j = 1; j < kernel; j++)
      for (int x = 0; x < out.width; x++) {
        const float v = line[x * stride + j];
        to[x] = average ? to[x] + v : v > to[x] ? v : to[x];
      }
    if (!average) return;
    for (int x = 0; x < out.width; x++)
      to[x] /= rows * counted(x, padding[1], padding[3], width);
  }

  // Cells of a window along one axis that count.
  float counted(int at, int before, int after, int length) const {
    const int first = at * stride - before, least = count_padding ? -before : 0;
    const int most = length + (count_padding ? after : 0);
    return static_cast<float>(std::min(first + kernel, most) - std::max(first, least));
  }

  // One channel of one output row; line: room for the padded row.
  void row(const FeatureMap& in, int y, int element, int channel, float* line,
           const FeatureMap& out, float* to) const {
    const int top = y * stride - padding[0], length = (out.width - 1) * stride + kernel;
    const float outside = average ? 0.0f : -std::numeric_limits<float>::infinity();
    std::fill_n(line, std::max(length, in.width + padding[1]), outside);
    float* inside = line + padding[1];
    for (int i = std::max(top, 0); i < std::min(top + kernel, in.height); i++) {
      const float* from = in.at(i, element, 0);
      for (int x = 0; x < in.width; x++) {
        const float v = in.type == ElementType::float32 ? from[x]
                        : channel                       ? odd_of(from[x])
                                                        : even_of(from[x]);
        inside[x] = average ? inside[x] + v : v > inside[x] ? v : inside[x];
      }
    }
    columns(line, out, counted(y, padding[0], padding[2], in.height), in.width, to);
  }

  void run(Context& context, const FeatureMap& in, const FeatureMap& out) const {
    if (std::min({padding[0], padding[1], padding[2], padding[3]}) < 0)
      throw std::invalid_argument("a pooling window cannot drop cells");
    const int excess = static_cast<int>(out.stride()) - out.margin() - out.width;
    const size_t line = size_t(out.width) * stride + kernel + in.width + padding[1];
    const bool pairs = in.type == ElementType::bfloat16;
    context.pool.parallel(out.height, [&](int y, int worker) {
      float* memory = context.scratch.get(worker, line + 2 * out.width);
      float *even = memory + line, *odd = even + out.width;
      for (int c = 0; c < out.elements(); c++) {
        float* to = out.at(y, c, 0);
        row(in, y, c, 0, memory, out, pairs ? even : to);
        if (pairs) row(in, y, c, 1, memory, out, odd);
        for (int x = 0; pairs && x < out.width; x++)
          to[x] = join_bfloat16(even[x], odd[x]);
        std::memset(to + out.width, 0, excess * sizeof(float));
      }
    });
  }
};

// Every `stride`-th cell, of any type.
void pick_cells(Context& context, const FeatureMap& in, int stride, const FeatureMap& out) {
  const int excess = static_cast<int>(out.stride()) - out.margin() - out.width;
  context.pool.parallel(out.height, [&](int y, int) {
    for (int c = 0; c < out.elements(); c++) {
      const float* from = in.at(y * stride, c, 0);
      float* to = out.at(y, c, 0);
      for (int x = 0; x < out.width; x++)
        to[x] = from[x * stride];
      std::memset(to + out.width, 0, excess * sizeof(float));
    }
  });
}

}  // namespace

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
  if (a_.kernel == 3 && a_.stride == 2 && !a_.negative)
    return pool_map(context, in, a_.padding[0], a_.padding[1], out);
  if (in.type != out.type) throw std::invalid_argument("this max pooling keeps the type");
  if (a_.kernel == 1 && std::max({a_.padding[0], a_.padding[1]}) <= 0)
    return pick_cells(context, in, a_.stride, out);
  expect_fractions(step.inputs[0]->format);
  WindowPool{a_.kernel, a_.stride, a_.padding, false, false}.run(context, in, out);
}

Shape AveragePool::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 1, 1);
  const Shape& in = expect(inputs, 0, Domain::map);
  return {Domain::map, in.channels,
          output_length(in.height, a_.kernel, a_.stride, a_.padding[0], a_.padding[2]),
          output_length(in.width, a_.kernel, a_.stride, a_.padding[1], a_.padding[3])};
}

Format AveragePool::format(std::span<const Format> inputs) const {
  return expect_fractions(inputs[0]);
}

void AveragePool::run(Context& context, const Step& step) const {
  WindowPool{a_.kernel, a_.stride, a_.padding, true, a_.count_padding}.run(
      context, step.inputs[0]->map, step.out.map);
}

}  // namespace sparsedet
