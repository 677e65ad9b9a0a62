// The weights of row tiles in the order of a convolution's columns, and the scales of int8. Only for
// the files of this folder that pack.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "algorithms/pack.h"

namespace sparsedet {

// By what a weight of int8 is multiplied before it is rounded.
inline float weight_steps(float largest) {
  return largest > 0 ? 127 / largest : 0;
}

// The columns of all blocks, one block after the other; puts the weights of row tiles into this
// order.
class Columns {
 public:
  explicit Columns(const PackedConv& conv)
      : weights_per_element_(conv.shape.in_type == ElementType::int8      ? 4
                             : conv.shape.in_type == ElementType::float32 ? 1
                                                                          : 2) {
    const ConvShape& shape = conv.shape;
    const int taps = shape.taps();
    const bool pixels = shape.in_type == ElementType::pixels;
    position_.resize(size_t(shape.in_channels) * taps);
    for (const auto& segments : conv.segments) {
      start_.push_back(count_);
      for (const Segment& s : segments) {
        for (int element = s.channel; element < s.channel + s.count; element++, count_++)
          for (int i = 0; i < weights_per_element_; i++) {
            const int c = pixels ? element : weights_per_element_ * element + i;
            const int x = ((pixels ? 2 * s.dx + i : s.dx) + shape.padding_left) / shape.dilation;
            const bool before = pixels && 2 * s.dx + i + shape.padding_left < 0;
            if (c >= shape.in_channels || before || x >= shape.kernel_width) continue;
            const int y = (s.dy + shape.padding_top) / shape.dilation;
            const int tap = y * shape.kernel_width + x;
            position_[size_t(c) * taps + tap] = weights_per_element_ * count_ + i;
          }
      }
    }
    start_.push_back(count_);
  }

  int count() const { return count_; }
  int start(size_t block) const { return start_[block]; }
  size_t row_length() const { return position_.size(); }

  // elements: [R][count], 0.0f where there is no weight. largest: the largest magnitude of each
  // output channel, for int8.
  void read(const PackedConv& conv, const WeightRows& rows, int tile,
            const std::vector<float>& largest, float* elements) const {
    std::memset(elements, 0, size_t(conv.tile_rows) * count_ * sizeof(float));
    for (int r = 0; r < conv.tile_rows; r++, elements += count_) {
      const int channel = conv.channel(tile * conv.tile_rows + r);
      if (channel >= conv.shape.out_channels) continue;
      if (weights_per_element_ == 4) {
        const float times = weight_steps(largest[channel]);
        rows.row(channel, [&](size_t i, float w) {  // the lowest channel comes first
          reinterpret_cast<int8_t*>(elements)[position_[i]] =
              static_cast<int8_t>(std::nearbyint(w * times));
        });
      } else if (weights_per_element_ == 2)
        rows.row(channel, [&](size_t i, float w) {
          const auto half = static_cast<uint16_t>(to_bfloat16(w));  // the even channel comes first
          std::memcpy(reinterpret_cast<char*>(elements) + 2 * position_[i], &half, 2);
        });
      else
        rows.row(channel, [&](size_t i, float w) { elements[position_[i]] = w; });
    }
  }

  // row_masks: [count], which rows have a nonzero weight in the column.
  void find_row_masks(const PackedConv& conv, const float* elements, bool dense,
                      uint8_t* row_masks) const {
    // Zero has two signs in float32 and bfloat16.
    const uint32_t digits = weights_per_element_ == 4   ? 0xffffffffu
                            : weights_per_element_ == 2 ? 0x7fff7fffu
                                                        : 0x7fffffffu;
    std::memset(row_masks, dense ? (1 << conv.tile_rows) - 1 : 0, count_);
    for (int r = 0; !dense && r < conv.tile_rows; r++, elements += count_)
      for (int k = 0; k < count_; k++)
        row_masks[k] |= ((std::bit_cast<uint32_t>(elements[k]) & digits) != 0) << r;
  }

 private:
  const int weights_per_element_;
  int count_ = 0;
  std::vector<int> start_;  // [blocks + 1]
  // Position of each weight of a row, counted in single weights: weights_per_element_ * column + i.
  std::vector<int32_t> position_;
};

// Splits the packed weights of int8 whose pairs are above the kernel's limit (LowPrecisionKernels):
// parts of such a pair go to `rest`, which is zero elsewhere. Returns how many were split.
int64_t split_pairs(std::vector<float>& elements, int limit, std::vector<float>& rest);

// The largest magnitude of each output channel, for int8; else empty.
std::vector<float> largest_weights(const ConvShape& shape, const WeightRows& rows, Packer packer);

// Sets how the sums of an int8 convolution become results (SparseArgs): scale and bias of each row,
// which take back what the input's zero point adds to each sum.
void scale_rows(const ConvShape& shape, const WeightRows& rows, const std::vector<float>& largest,
                Packer packer, PackedConv& conv);

}  // namespace sparsedet
