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

void scale_rows(const ConvShape& shape, const std::vector<float>& largest, PackedConv& conv) {
  const bool packed = shape.out_type == ElementType::int8;
  const float unit = packed ? shape.out_quantization.scale : 1.0f;
  conv.residual_scale = shape.residual_quantization.scale / unit;
  conv.scale.assign(conv.bias.size(), 0.0f);
  for (int row = 0; row < shape.out_channels; row++) {
    conv.scale[row] = largest[row] / 127 * shape.in_quantization.scale / unit;
    conv.bias[row] /= unit;
    if (packed)
      conv.bias[row] +=
          static_cast<float>(shape.out_quantization.zero_point) -
          static_cast<float>(shape.residual_quantization.zero_point) * conv.residual_scale;
  }
}

}  // namespace sparsedet
