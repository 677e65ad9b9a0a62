#include "algorithms/columns.h"

namespace sparsedet {

int64_t split_pairs(std::vector<float>& elements, int limit, std::vector<float>& rest) {
  rest.assign(elements.size(), 0.0f);
  int64_t split = 0;
  auto* all = reinterpret_cast<int8_t*>(elements.data());
  auto* parts = reinterpret_cast<int8_t*>(rest.data());
  for (size_t element = 0; element < elements.size(); element++) {
    bool above = false;
    for (size_t at = 4 * element; at < 4 * element + 4; at += 2) {
      if (std::abs(all[at]) + std::abs(all[at + 1]) <= limit) continue;
      above = true;
      for (size_t i = at; i < at + 2; i++) {
        parts[i] = static_cast<int8_t>(all[i] / 2);
        all[i] = static_cast<int8_t>(all[i] - parts[i]);
      }
    }
    split += above;
  }
  return split;
}

std::vector<float> largest_weights(const ConvShape& shape, const WeightRows& rows, Packer packer) {
  std::vector<float> largest;
  if (shape.in_type != ElementType::int8) return largest;
  largest.assign(shape.out_channels, 0.0f);
  packer.parallel(shape.out_channels, [&](int row, int) {
    rows.row(row, [&](size_t, float w) { largest[row] = std::max(largest[row], std::abs(w)); });
  });
  return largest;
}

namespace {

// The sum of the rounded weights of each output channel.
std::vector<int32_t> sums_of_weights(const ConvShape& shape, const WeightRows& rows,
                                     const std::vector<float>& largest, Packer packer) {
  std::vector<int32_t> sums(shape.out_channels);
  packer.parallel(shape.out_channels, [&](int row, int) {
    const float times = weight_steps(largest[row]);
    rows.row(row, [&](size_t, float w) {
      sums[row] += static_cast<int32_t>(std::nearbyint(w * times));
    });
  });
  return sums;
}

// Whether one fused step makes bytes of sums: saturating them is the activation, if there is one.
bool one_step(const ConvShape& shape) {
  if (shape.out_type != ElementType::int8 || shape.residual_last) return false;
  return shape.activation == Activation::none ||
         (shape.activation == Activation::relu && shape.out_quantization.zero_point == 0);
}

}  // namespace

void scale_rows(const ConvShape& shape, const WeightRows& rows, const std::vector<float>& largest,
                Packer packer, PackedConv& conv) {
  const bool steps = one_step(shape), bytes = shape.out_type == ElementType::int8;
  const float unit = steps ? shape.out_quantization.scale : 1.0f;
  conv.residual_scale = shape.residual_quantization.scale / unit;
  conv.scale.assign(conv.bias.size(), 0.0f);
  // What zero points add: to each sum, to the residual, to the output.
  const int input_zero = shape.in_quantization.zero_point;
  std::vector<int32_t> sums;
  if (input_zero) sums = sums_of_weights(shape, rows, largest, packer);
  const float added =
      static_cast<float>(shape.residual_quantization.zero_point) * conv.residual_scale;
  const auto zero = static_cast<float>(shape.out_quantization.zero_point);
  for (int row = 0; row < shape.out_channels; row++) {
    conv.scale[row] = largest[row] / 127 * shape.in_quantization.scale / unit;
    conv.bias[row] /= unit;
    if (input_zero)
      conv.bias[row] = static_cast<float>(double{conv.bias[row]} -
                                          double{conv.scale[row]} * input_zero * sums[row]);
    if (steps) conv.bias[row] += zero - added;
    if (bytes && !steps && !shape.residual_last) conv.bias[row] -= added;
  }
  if (!bytes || steps) return;
  conv.out_scale = 1 / shape.out_quantization.scale;
  conv.out_zero = shape.residual_last ? zero - added * conv.out_scale : zero;
}

}  // namespace sparsedet
