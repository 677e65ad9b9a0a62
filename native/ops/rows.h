// Work on a map row by row, in float32 and bfloat16: what several operations share.
#pragma once
#include <cstring>
#include <span>
#include <vector>

#include "ops/operation.h"

namespace sparsedet {

// Throws std::invalid_argument unless values of the format are float32 or bfloat16.
inline Format expect_fractions(const Format& format) {
  if (format.type != ElementType::float32 && format.type != ElementType::bfloat16)
    throw std::invalid_argument("runs in float32 and bfloat16 only");
  return {format.type};
}

// Copies the pixels of a map into another of its shape and type.
inline void copy_map(Context& context, const FeatureMap& in, const FeatureMap& out) {
  const auto row = static_cast<size_t>(out.width) * sizeof(float);
  context.pool.parallel(out.height, [&](int y, int) {
    for (int c = 0; c < out.elements(); c++)
      std::memcpy(out.at(y, c, 0), in.at(y, c, 0), row);
  });
}

// Channels of all elements of a map: beyond the last channel there may be one more.
inline int padded_channels(const FeatureMap& map) {
  return map.elements() * channels_per_element(map.type);
}

// The sum of the values of each channel and of their squares: [padded channels][2]. The same for
// any number of threads.
inline std::vector<double> sums_of(Context& context, const FeatureMap& map) {
  const LowPrecisionKernels* low = low_precision_kernels(context, map.type);
  const auto kernel = low ? low->sums : context.kernels.sums;
  std::vector<double> sums(size_t(padded_channels(map)) * 2);
  constexpr int slice = 8;  // elements in one unit of work: neighbours in memory
  context.pool.parallel(divide_up(map.elements(), slice), [&](int unit, int) {
    const int last = std::min((unit + 1) * slice, map.elements());
    for (int c = unit * slice; c < last; c++)
      kernel({map.at(0, c, 0), map.row(), map.height, map.width,
              &sums[size_t(c) * channels_per_element(map.type) * 2]});
  });
  return sums;
}

// Each channel times its factor plus its offset, then the activation. factors, offsets: [padded
// channels]; out may be `in`.
inline void scale_and_shift(Context& context, const FeatureMap& in, std::span<const float> factors,
                            std::span<const float> offsets, Activation activation,
                            const FeatureMap& out) {
  const LowPrecisionKernels* low = low_precision_kernels(context, in.type);
  const auto kernel = low ? low->affine : context.kernels.affine;
  constexpr int slice = 32;  // elements in one unit of work: neighbours in memory
  const int slices = divide_up(in.elements(), slice);
  context.pool.parallel(in.height * slices, [&](int unit, int) {
    const int y = unit / slices, first = unit % slices * slice;
    for (int c = first; c < std::min(first + slice, in.elements()); c++) {
      const int channel = c * channels_per_element(in.type);
      kernel({in.at(y, c, 0), out.at(y, c, 0), in.width, &factors[channel], &offsets[channel],
              activation});
    }
  });
}

}  // namespace sparsedet
