#include "algorithms/pack.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "algorithms/cut.h"

namespace sparsedet {

namespace {

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
        const float times = largest[channel] > 0 ? 127 / largest[channel] : 0;
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

// Writes the streams of one row tile and block: the block's columns, sorted by row mask.
Extent pack_row_tile(const PackedConv& conv, const Columns& columns, size_t block,
                     const float* elements, const uint8_t* row_masks, int step, uint16_t* counts,
                     uint16_t* index, float* values) {
  const int from = columns.start(block), count = columns.start(block + 1) - from,
            R = conv.tile_rows;
  row_masks += from;
  int next[1 << kMaxTileRows] = {}, kept = 0;
  for (int k = 0; k < count; k++)
    next[row_masks[k]]++;
  for (int mask = 1; mask < 1 << R; mask++) {
    counts[mask - 1] = static_cast<uint16_t>(next[mask]);
    next[mask] = std::exchange(kept, kept + next[mask]);
  }
  next[0] = kept;  // columns without weights come last and are not stored
  std::array<uint16_t, 1 << 10> order;
  for (int k = 0; k < count; k++)
    order[next[row_masks[k]]++] = static_cast<uint16_t>(k);
  float* const begin = values;
  for (int i = 0; i < kept; i++) {
    const int k = order[i], mask = row_masks[k];
    index[i] = static_cast<uint16_t>(k * step);
    // Without a branch: a zero weight is overwritten by the next weight.
    const float* element = elements + from + k;
    for (int r = 0; r < R; r++, element += columns.count()) {
      *values = *element;
      values += mask >> r & 1;
    }
  }
  return {static_cast<size_t>(kept), static_cast<size_t>(values - begin)};
}

// Scale and bias of each row of an int8 convolution, so that results are in units of the output.
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

}  // namespace

PackedConv pack_conv(const Kernels& kernels, const ConvShape& shape, const Weights& weights,
                     const float* bias, bool split_taps, bool dense, Packer packer) {
  PackedConv conv = cut_conv(kernels, shape, bias, split_taps);
  const Columns columns(conv);
  const WeightRows rows(weights, shape.out_channels, columns.row_length(), packer);
  const size_t blocks = conv.segments.size(), row_tiles = conv.row_tiles, count = columns.count();
  const size_t row_masks = (size_t{1} << conv.tile_rows) - 1;
  std::vector<float> largest;  // largest magnitude of each output channel
  if (shape.in_type == ElementType::int8) {
    largest.assign(shape.out_channels, 0.0f);
    packer.parallel(shape.out_channels, [&](int row, int) {
      rows.row(row, [&](size_t, float w) { largest[row] = std::max(largest[row], std::abs(w)); });
    });
    scale_rows(shape, largest, conv);
  }
  // First pack each row tile into scratch memory: the offset of a stream depends on the lengths of
  // all streams before it.
  struct Worker {
    std::vector<float> elements;
    std::vector<uint8_t> row_masks;
  };
  std::vector<Worker> workers(packer.pool ? packer.pool->size() : 1);
  const size_t room = conv.tile_rows * count + kMaxTileRows;  // of a row tile
  PackScratch own_scratch;
  PackScratch& scratch = packer.scratch ? *packer.scratch : own_scratch;
  uint16_t* const all_index = scratch.index(row_tiles * count);
  float* const all_values = scratch.values(row_tiles * room);
  std::vector<uint16_t> counts(blocks * row_tiles * row_masks);
  std::vector<Extent> extents(blocks * row_tiles);  // [block][row tile], as counts
  packer.parallel(conv.row_tiles, [&](int tile, int worker) {
    auto& [elements, masks] = workers[worker];
    elements.resize(conv.tile_rows * count);
    masks.resize(count);
    columns.read(conv, rows, tile, largest, elements.data());
    columns.find_row_masks(conv, elements.data(), dense, masks.data());
    uint16_t* index = &all_index[tile * count];
    float* values = &all_values[tile * room];
    for (size_t block = 0; block < blocks; block++) {
      const size_t at = block * row_tiles + tile;
      const Extent e = pack_row_tile(conv, columns, block, elements.data(), masks.data(),
                                     index_step(kernels), &counts[at * row_masks], index, values);
      extents[at] = e;
      index += e.columns;
      values += e.weights;
    }
  });
  Extent all;
  std::vector<Extent> before(blocks * row_tiles);
  for (size_t at = 0; at < before.size(); at++) {
    before[at] = all;
    all.columns += extents[at].columns;
    all.weights += extents[at].weights;
  }
  const size_t size = packed_bytes(conv, all);
  Memory own;
  const std::shared_ptr<std::byte> memory = (packer.memory ? *packer.memory : own).allocate(size);
  std::memcpy(memory.get(), counts.data(), counts_bytes(conv));
  auto* to_index = reinterpret_cast<uint16_t*>(memory.get() + counts_bytes(conv));
  auto* to_values = reinterpret_cast<float*>(memory.get() + index_bytes(conv, all.columns));
  packer.parallel(conv.row_tiles, [&](int tile, int) {
    const uint16_t* index = &all_index[tile * count];
    const float* values = &all_values[tile * room];
    for (size_t at = tile; at < extents.size(); at += row_tiles) {
      const Extent e = extents[at];
      std::memcpy(to_index + before[at].columns, index, e.columns * sizeof(uint16_t));
      std::memcpy(to_values + before[at].weights, values, e.weights * sizeof(float));
      index += e.columns;
      values += e.weights;
    }
  });
  conv.owner = memory;
  conv.packed = {memory.get(), size};
  set_streams(conv, conv.packed);
  return conv;
}
}  // namespace sparsedet
