#include "algorithms/cut.h"

#include <algorithm>

namespace sparsedet {

namespace {

constexpr int kPanelBytes = 32 * 1024;
constexpr int kChunkRowTiles = 52;  // x 31 row masks a block: as much as the branch predictor holds
constexpr int kChunkRows = 256;  // rowwise: packing a panel takes little time beside its products
// 512 rows: their weights for a block of columns take 256 KB of the second-level cache, and packing a
// panel little time beside its products.
constexpr int kMatrixChunkRowTiles = 32;

int tile_rows_of(const Kernels& kernels, ElementType type) {
  if (type == ElementType::float32) return kernels.tile_rows;
  return (type == ElementType::int8 ? kernels.int8 : kernels.bf16)->tile_rows;
}

// Length of equal blocks of about `target` columns, of `total` columns, a multiple of `unit`. A
// slightly larger block is better than a tiny extra one.
int block_length(int total, int target, int unit) {
  int blocks = std::max(1, (total + target / 2) / target);
  if (divide_up(total, blocks) > target + target / 8) blocks++;
  return divide_up(divide_up(total, blocks), unit) * unit;
}

std::vector<std::vector<Segment>> cut_blocks(const ConvShape& shape, int target, int unit,
                                             bool split_taps) {
  // Elements along x that a window reads: its taps, or the pairs of pixels that hold them.
  const bool pixels = shape.in_type == ElementType::pixels;
  const int before = pixels ? (shape.padding_left + 1) / 2 : shape.padding_left;
  const int across =
      pixels ? before + (shape.kernel_width - 1 - shape.padding_left) / 2 + 1 : shape.kernel_width;
  const int taps = shape.kernel_height * across,
            elements = element_count(shape.in_type, shape.in_channels);
  std::vector<std::vector<Segment>> blocks;
  auto segment = [&](int tap, int channel, int count) {
    return Segment{tap / across * shape.dilation - shape.padding_top,
                   tap % across * shape.dilation - before, channel, count};
  };
  if (split_taps) {
    const int length = block_length(elements, target, unit);
    for (int c = 0; c < elements; c += length)
      for (int tap = 0; tap < taps; tap++)
        blocks.push_back({segment(tap, c, std::min(length, elements - c))});
    return blocks;
  }
  const int total = taps * elements, length = block_length(total, target, unit);
  for (int from = 0; from < total; from += length) {
    blocks.emplace_back();
    for (int k = from, end = std::min(total, from + length); k < end;) {
      const int channel = k % elements;
      const int count = std::min(end - k, elements - channel);
      blocks.back().push_back(segment(k / elements, channel, count));
      k += count;
    }
  }
  return blocks;
}
}  // namespace

PackedConv cut_conv(const Kernels& kernels, const ConvShape& shape, const float* bias,
                    bool split_taps, PackedLayout layout) {
  const bool matrix = layout == PackedLayout::matrix, rowwise = layout == PackedLayout::rowwise;
  PackedConv conv{};
  conv.shape = shape;
  conv.layout = layout;
  conv.tile_rows = matrix ? kSquare : rowwise ? 1 : tile_rows_of(kernels, shape.in_type);
  // Row tiles that stay together.
  const int pair = matrix || shape.out_type == ElementType::bfloat16 ? 2 : 1;
  const int units = divide_up(shape.out_channels, conv.tile_rows * pair);
  const int chunk_units = (matrix    ? kMatrixChunkRowTiles
                           : rowwise ? kChunkRows
                                     : kChunkRowTiles) /
                          pair;
  conv.chunks = std::max(1, (units + chunk_units / 2) / chunk_units);
  conv.chunk_row_tiles = divide_up(units, conv.chunks) * pair;
  conv.row_tiles = units * pair;
  conv.chunks = divide_up(conv.row_tiles, conv.chunk_row_tiles);
  conv.bias.assign(static_cast<size_t>(conv.row_tiles) * conv.tile_rows, 0.0f);
  for (size_t row = 0; bias && row < conv.bias.size(); row++)
    if (conv.channel(row) < shape.out_channels) conv.bias[row] = bias[conv.channel(row)];
  const int target = kPanelBytes / (kVectors * kernels.lanes * static_cast<int>(sizeof(float)));
  conv.segments = cut_blocks(shape, target, matrix ? kSquare : 1, split_taps);
  return conv;
}
}  // namespace sparsedet
