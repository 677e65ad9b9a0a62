#include "ops/normalise.h"

#include <cstdint>
#include <cstring>

namespace sparsedet {

namespace {

// One row of pixels as three rows of values, in one pass over the pixels.
template <class T>
void planes(const T* __restrict pixels, int width, const float mean[3], const float scale[3],
            float* __restrict first, float* __restrict second, float* __restrict third) {
  const float m0 = mean[0], m1 = mean[1], m2 = mean[2];
  const float s0 = scale[0], s1 = scale[1], s2 = scale[2];
  for (int x = 0; x < width; x++, pixels += 3) {
    first[x] = (static_cast<float>(pixels[0]) - m0) * s0;
    second[x] = (static_cast<float>(pixels[1]) - m1) * s1;
    third[x] = (static_cast<float>(pixels[2]) - m2) * s2;
  }
}

}  // namespace

template <class T>
void normalise(Context& context, const T* pixels, int width, const float mean[3],
               const float std[3], bool rgb, const FeatureMap& out) {
  const float scale[3] = {1 / std[0], 1 / std[1], 1 / std[2]};
  const int excess = static_cast<int>(out.stride()) - out.margin() - out.width;
  context.pool.parallel(out.height, [&](int y, int) {
    const T* row = pixels + static_cast<ptrdiff_t>(y) * width * 3;
    float* to[3];
    for (int c = 0; c < 3; c++) {
      to[c] = out.at(y, rgb ? 2 - c : c, 0);
      std::memset(to[c] + out.width, 0, excess * sizeof(float));
    }
    if (out.type == ElementType::float32) {
      planes(row, width, mean, scale, to[0], to[1], to[2]);
      return;
    }
    for (int c = 0; c < 3; c++) {
      const auto pixel = [&](int x) { return (row[x * 3 + c] - mean[c]) * scale[c]; };
      for (int x = 0; x < width / 2; x++)
        to[c][x] = join_bfloat16(pixel(2 * x), pixel(2 * x + 1));
      if (width % 2) to[c][width / 2] = join_bfloat16(pixel(width - 1), 0.0f);
    }
  });
}

template void normalise(Context&, const uint8_t*, int, const float[3], const float[3], bool,
                        const FeatureMap&);
template void normalise(Context&, const float*, int, const float[3], const float[3], bool,
                        const FeatureMap&);

Shape Normalise::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 1, 1);
  const Shape& image = expect(inputs, 0, Domain::image);
  return {Domain::map, 3, image.height, image.width};
}

void Normalise::run(Context& context, const Step& step) const {
  const Value& in = *step.inputs[0];
  if (!in.pixels) throw std::invalid_argument("the image is needed, and not given");
  if (in.float_pixels)
    normalise(context, static_cast<const float*>(in.pixels), in.shape.width, a_.mean, a_.std,
              a_.rgb, step.out.map);
  else
    normalise(context, static_cast<const uint8_t*>(in.pixels), in.shape.width, a_.mean, a_.std,
              a_.rgb, step.out.map);
}

}  // namespace sparsedet
