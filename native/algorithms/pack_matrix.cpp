#include "algorithms/pack_matrix.h"

#include <stdexcept>

#include "algorithms/columns.h"
#include "algorithms/cut.h"

namespace sparsedet {

namespace {

constexpr int kSquareFloats = kSquare * kSquare;

// Floats of one row tile and block.
size_t row_tile_floats(const PackedConv& conv, size_t block) {
  return size_t(divide_up(conv.columns(block), kSquare)) * kSquareFloats;
}

size_t all_floats(const PackedConv& conv) {
  size_t n = 0;
  for (size_t block = 0; block < conv.segments.size(); block++)
    n += conv.row_tiles * row_tile_floats(conv, block);
  return n;
}

// Sets the streams, which lie in `packed` one after the other: [block][row tile][square].
void set_values(PackedConv& conv) {
  const auto* values = reinterpret_cast<const float*>(conv.packed.data());
  conv.streams.assign(conv.segments.size(), {});
  for (size_t block = 0; block < conv.segments.size(); block++)
    for (int first = 0; first < conv.row_tiles; first += conv.chunk_row_tiles) {
      const size_t n =
          std::min(conv.chunk_row_tiles, conv.row_tiles - first) * row_tile_floats(conv, block);
      conv.streams[block].push_back({{}, {}, {values, n}});
      values += n;
    }
}

// elements: [kSquare][count] of the row tile, from the block's first column on.
void fill_squares(const float* elements, int count, int columns, float* to) {
  for (int from = 0; from < columns; from += kSquare, to += kSquareFloats)
    for (int row = 0; row < kSquare; row++)
      for (int i = 0; i < std::min(kSquare, columns - from); i++)
        to[row * kSquare + i] = elements[size_t(row) * count + from + i];
}

}  // namespace

PackedConv pack_matrix(const Kernels& kernels, const ConvShape& shape, const Weights& weights,
                       const float* bias, bool split_taps, Packer packer) {
  PackedConv conv = cut_conv(kernels, shape, bias, split_taps, PackedLayout::matrix);
  const Columns columns(conv);
  const WeightRows rows(weights, shape.out_channels, columns.row_length(), packer);
  const std::vector<float> largest = largest_weights(shape, rows, packer);
  if (!largest.empty()) scale_rows(shape, rows, largest, packer, conv);
  const size_t size = all_floats(conv) * sizeof(float);
  Memory own;
  const std::shared_ptr<std::byte> memory =
      (packer.memory ? *packer.memory : own).allocate(size);  // zeros
  std::vector<std::vector<float>> workers(packer.pool ? packer.pool->size() : 1);
  packer.parallel(conv.row_tiles, [&](int tile, int worker) {
    auto& elements = workers[worker];
    elements.resize(size_t(kSquare) * columns.count());
    columns.read(conv, rows, tile, largest, elements.data());
    auto* to = reinterpret_cast<float*>(memory.get());
    for (size_t block = 0; block < conv.segments.size(); block++) {
      fill_squares(&elements[columns.start(block)], columns.count(), conv.columns(block),
                   to + tile * row_tile_floats(conv, block));
      to += conv.row_tiles * row_tile_floats(conv, block);
    }
  });
  conv.owner = memory;
  conv.packed = {memory.get(), size};
  set_values(conv);
  return conv;
}

PackedConv unpack_matrix(const Kernels& kernels, const ConvShape& shape,
                         std::span<const std::byte>& packed, std::shared_ptr<const void> owner,
                         const float* bias, bool split_taps) {
  PackedConv conv = cut_conv(kernels, shape, bias, split_taps, PackedLayout::matrix);
  const size_t size = all_floats(conv) * sizeof(float);
  if (packed.size() < size) throw std::invalid_argument("packed weights do not fit the operation");
  conv.owner = std::move(owner);
  conv.packed = packed.first(size);
  set_values(conv);
  packed = packed.subspan(size);
  return conv;
}

}  // namespace sparsedet
