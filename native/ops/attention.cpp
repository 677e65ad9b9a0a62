#include "ops/attention.h"

#include <cmath>

#include "ops/rows.h"

namespace sparsedet {

namespace {

constexpr int kMostCells = 1 << 14;

// Shares of `cells` values that sum to 1, from their logits, in place.
void softmax(float* logits, int cells) {
  float most = logits[0], sum = 0;
  for (int i = 1; i < cells; i++)
    most = std::max(most, logits[i]);
  for (int i = 0; i < cells; i++)
    sum += logits[i] = std::exp(logits[i] - most);
  for (int i = 0; i < cells; i++)
    logits[i] /= sum;
}

// Sum of products in a fixed order: that of 16 sums side by side.
float product(const float* a, const float* b, int count) {
  constexpr int side = 16;
  float sums[side] = {};
  int i = 0;
  for (; i + side <= count; i += side)
    for (int j = 0; j < side; j++)
      sums[j] += a[i + j] * b[i + j];
  float sum = 0;
  for (int j = 0; j < side; j++)
    sum += sums[j];
  for (; i < count; i++)
    sum += a[i] * b[i];
  return sum;
}

}  // namespace

Shape Attention::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 1, 1);
  Shape out = expect(inputs, 0, Domain::map);
  const int each = out.channels / a_.heads;
  if (out.channels % a_.heads || each <= 2 * a_.key)
    throw std::invalid_argument("has channels that its heads do not fit");
  if (int64_t{out.height} * out.width > kMostCells)
    throw std::invalid_argument("attends to too many cells");
  out.channels -= 2 * a_.heads * a_.key;
  return out;
}

size_t Attention::scratch_floats(const Value& out) const {
  const size_t channels = out.shape.channels + size_t(2) * a_.heads * a_.key;
  return channels * out.shape.height * out.shape.width;
}

void Attention::run(Context& context, const Step& step) const {
  const FeatureMap &in = step.inputs[0]->map, &out = step.out.map;
  const int cells = in.height * in.width, each = in.channels / a_.heads;
  const int values = each - 2 * a_.key;
  float* all = step.scratch;  // [channels][cells]
  context.pool.parallel(in.channels, [&](int c, int) {
    for (int y = 0; y < in.height; y++)
      std::copy_n(in.at(y, c, 0), in.width, all + (ptrdiff_t{c} * in.height + y) * in.width);
  });
  const int excess = static_cast<int>(out.stride()) - out.margin() - out.width;
  context.pool.parallel(a_.heads * in.height, [&](int unit, int worker) {
    const int head = unit / in.height, y = unit % in.height;
    const float* query = all + ptrdiff_t{head} * each * cells;
    const float *key = query + ptrdiff_t{a_.key} * cells, *value = key + ptrdiff_t{a_.key} * cells;
    float* shares = context.scratch.get(worker, cells);
    for (int x = 0; x < in.width; x++) {
      std::fill_n(shares, cells, 0.0f);
      for (int c = 0; c < a_.key; c++) {
        const float q = query[ptrdiff_t{c} * cells + y * in.width + x] * a_.scale;
        for (int i = 0; i < cells; i++)
          shares[i] += q * key[ptrdiff_t{c} * cells + i];
      }
      softmax(shares, cells);
      for (int c = 0; c < values; c++)
        *out.at(y, head * values + c, x) = product(value + ptrdiff_t{c} * cells, shares, cells);
    }
    for (int c = 0; c < values; c++)
      std::memset(out.at(y, head * values + c, out.width), 0, excess * sizeof(float));
  });
}

}  // namespace sparsedet
