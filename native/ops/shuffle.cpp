#include "ops/shuffle.h"

#include "ops/rows.h"

namespace sparsedet {

Shape Shuffle::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 1, 1);
  const Shape& in = expect(inputs, 0, Domain::map);
  if (in.channels % a_.groups)
    throw std::invalid_argument("has channels that its groups do not divide");
  return in;
}

Format Shuffle::format(std::span<const Format> inputs) const {
  if (inputs[0].type != ElementType::int8) return expect_fractions(inputs[0]);
  return inputs[0];
}

void Shuffle::run(Context& context, const Step& step) const {
  const FeatureMap &in = step.inputs[0]->map, &out = step.out.map;
  const int each = in.channels / a_.groups;
  const auto source = [&](int channel) {
    return channel < in.channels ? channel % a_.groups * each + channel / a_.groups : channel;
  };
  context.pool.parallel(out.height, [&](int y, int) {
    for (int c = 0; c < out.elements(); c++) {
      float* to = out.at(y, c, 0);
      if (in.type == ElementType::float32) {
        std::memcpy(to, in.at(y, source(c), 0), out.width * sizeof(float));
        continue;
      }
      if (in.type == ElementType::int8) {
        const int channels[] = {source(4 * c), source(4 * c + 1), source(4 * c + 2),
                                source(4 * c + 3)};
        for (int x = 0; x < out.width; x++) {
          uint32_t bytes[4];
          for (int i = 0; i < 4; i++)
            bytes[i] = byte_of(in.at(y, channels[i] / 4, 0)[x], channels[i]);
          to[x] = join_bytes(bytes);
        }
        clear_excess(out, y, c);
        continue;
      }
      const int low = source(2 * c), high = source(2 * c + 1);
      const float *even = in.at(y, low / 2, 0), *odd = in.at(y, high / 2, 0);
      for (int x = 0; x < out.width; x++)
        to[x] = join_bfloat16(low % 2 ? odd_of(even[x]) : even_of(even[x]),
                              high % 2 ? odd_of(odd[x]) : even_of(odd[x]));
    }
  });
}

}  // namespace sparsedet
