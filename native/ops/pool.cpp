#include "ops/pool.h"

#include <algorithm>
#include <cstdint>
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

void check_padding(const int (&padding)[4]) {
  if (std::min({padding[0], padding[1], padding[2], padding[3]}) < 0)
    throw std::invalid_argument("a pooling window cannot drop cells");
}

// 3x3 windows of stride 2 over float32 of any sign, which lie outside of the map by one cell at most.
// The kernel takes zero for what is outside. So a row outside is replaced by the row beside it, which
// every window with it has, too; and windows with columns outside are made again.
void pool_signed(Context& context, const FeatureMap& in, const int (&padding)[4],
                 const FeatureMap& out) {
  context.pool.parallel(out.height, [&](int y, int) {
    PoolArgs a{};
    a.width = out.width;
    for (int c = 0; c < out.elements(); c++) {
      const float* inside[3];
      for (int r = 0; r < 3; r++) {
        inside[r] = in.at(std::clamp(2 * y - padding[0] + r, 0, in.height - 1), c, 0);
        a.rows[0][r] = inside[r] - padding[1];
      }
      a.out = out.at(y, c, 0);
      context.kernels.pool(a);
      const auto again = [&](int x) {
        const int first = std::max(2 * x - padding[1], 0);
        const int last = std::min(2 * x - padding[1] + 2, in.width - 1);
        float best = inside[0][first];
        for (const float* row : inside)
          best = std::max(best, *std::max_element(row + first, row + last + 1));
        a.out[x] = best;
      };
      if (padding[1] > 0) again(0);
      if (2 * (out.width - 1) - padding[1] + 2 >= in.width) again(out.width - 1);
    }
  });
}

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
    check_padding(padding);
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
        clear_excess(out, y, c);
      }
    });
  }
};

// The largest byte of each window, in steps of its type: rows first, then columns. Byte 0, the
// smallest, stands beside the map.
void pool_bytes(Context& context, const FeatureMap& in, int kernel, int stride,
                const int (&padding)[4], const FeatureMap& out) {
  check_padding(padding);
  const int length = std::max((out.width - 1) * stride + kernel, in.width + padding[1]);
  context.pool.parallel(out.height, [&](int y, int worker) {
    auto* line = reinterpret_cast<uint8_t*>(context.scratch.get(worker, length + out.width));
    auto* best = line + 4 * length;
    const int top = y * stride - padding[0];
    for (int c = 0; c < out.elements(); c++) {
      std::memset(line, 0, 4 * length);
      uint8_t* inside = line + 4 * padding[1];
      for (int i = std::max(top, 0); i < std::min(top + kernel, in.height); i++) {
        const auto* from = reinterpret_cast<const uint8_t*>(in.at(i, c, 0));
        for (int b = 0; b < 4 * in.width; b++)
          inside[b] = std::max(inside[b], from[b]);
      }
      if (stride == 1) {
        std::memcpy(best, line, 4 * out.width);
        for (int j = 1; j < kernel; j++)
          for (int b = 0; b < 4 * out.width; b++)
            best[b] = std::max(best[b], line[b + 4 * j]);
      } else {
        for (int b = 0; b < 4 * out.width; b++) {
          const uint8_t* from = line + b / 4 * 4 * stride + b % 4;
          best[b] = *from;
          for (int j = 1; j < kernel; j++)
            best[b] = std::max(best[b], from[4 * j]);
        }
      }
      std::memcpy(out.at(y, c, 0), best, 4 * out.width);
      clear_excess(out, y, c);
    }
  });
}

// Every `stride`-th cell, of any type.
void pick_cells(Context& context, const FeatureMap& in, int stride, const FeatureMap& out) {
  context.pool.parallel(out.height, [&](int y, int) {
    for (int c = 0; c < out.elements(); c++) {
      const float* from = in.at(y * stride, c, 0);
      float* to = out.at(y, c, 0);
      for (int x = 0; x < out.width; x++)
        to[x] = from[x * stride];
      clear_excess(out, y, c);
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
  if (a_.kernel != 3 || a_.stride != 2 || a_.negative || a_.quantization.zero_point)
    throw std::invalid_argument("this max pooling keeps the type");
  return {a_.type, a_.quantization};
}

Needs MaxPool::needs(std::span<const Shape> inputs, size_t) const {
  return {border_needed(inputs[0].height, a_.kernel, a_.stride, a_.padding[0], a_.padding[2]),
          std::max({a_.padding[1], a_.padding[3], 0})};
}

void MaxPool::run(Context& context, const Step& step) const {
  const FeatureMap &in = step.inputs[0]->map, &out = step.out.map;
  const bool bytes = in.type == ElementType::int8;
  const auto [least, most] = std::minmax_element(a_.padding, a_.padding + 4);
  if (a_.kernel == 3 && a_.stride == 2 && a_.negative && in.type == ElementType::float32 &&
      *least >= 0 && *most <= 1)
    return pool_signed(context, in, a_.padding, out);
  if (a_.kernel == 3 && a_.stride == 2 && !a_.negative && !bytes)
    return pool_map(context, in, a_.padding[0], a_.padding[1], out);
  if (a_.kernel == 1 && std::max({a_.padding[0], a_.padding[1]}) <= 0)
    return pick_cells(context, in, a_.stride, out);
  if (bytes) return pool_bytes(context, in, a_.kernel, a_.stride, a_.padding, out);
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
