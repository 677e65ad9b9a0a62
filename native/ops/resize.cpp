#include "ops/resize.h"

namespace sparsedet {

namespace {

// Source of each row (or column) of the output.
std::vector<int> sources(int in, int out) {
  const float scale = static_cast<float>(in) / static_cast<float>(out);
  std::vector<int> from(out);
  for (int i = 0; i < out; i++)
    from[i] = std::min(static_cast<int>(static_cast<float>(i) * scale), in - 1);
  return from;
}

}  // namespace

Shape Resize::shape(std::span<const Shape> inputs) const {
  const Shape& in = expect(inputs, 0, Domain::map);
  expect_count(inputs, a_.factor ? 1 : 2, a_.factor ? 1 : 2);
  if (a_.factor) return {Domain::map, in.channels, in.height * a_.factor, in.width * a_.factor};
  const Shape& like = expect(inputs, 1, Domain::map);
  return {Domain::map, in.channels, like.height, like.width};
}

void Resize::run(Context& context, const Step& step) const {
  const FeatureMap &in = step.inputs[0]->map, &out = step.out.map;
  if (in.type == ElementType::pixels)
    throw std::invalid_argument("the network input cannot be resized");
  const std::vector<int> rows = sources(in.height, out.height);
  const std::vector<int> columns = sources(in.width, out.width);
  const bool twice = out.width == 2 * in.width;
  context.pool.parallel(in.height, [&](int source, int) {
    // The rows of the output that are this one.
    const auto [first, last] = std::equal_range(rows.begin(), rows.end(), source);
    const auto y = static_cast<int>(first - rows.begin());
    const auto end = static_cast<int>(last - rows.begin());
    for (int c = 0; y < end && c < out.elements(); c++) {
      const float* from = in.at(source, c, 0);
      float* to = out.at(y, c, 0);
      for (int x = 0; twice && x < in.width; x++)
        to[2 * x] = to[2 * x + 1] = from[x];
      for (int x = 0; !twice && x < out.width; x++)
        to[x] = from[columns[x]];
      clear_excess(out, y, c);
      for (int other = y + 1; other < end; other++)
        std::copy_n(to, out.stride() - out.margin(), out.at(other, c, 0));
    }
  });
}

}  // namespace sparsedet
