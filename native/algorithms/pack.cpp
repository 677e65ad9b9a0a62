#include "algorithms/pack.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <utility>

#include "algorithms/columns.h"
#include "algorithms/cut.h"

namespace sparsedet {

namespace {

// The weights of one row tile, and which rows of each column are not zero.
struct Tile {
  std::vector<float> elements;     // [R][columns]
  std::vector<uint8_t> row_masks;  // [columns]
};

// Writes the streams of one row tile and block: the block's columns, sorted by row mask. rest: parts
// of weights that the kernel cannot take as a whole, whose columns occur once more; or null.
Extent pack_row_tile(const PackedConv& conv, const Columns& columns, size_t block, const Tile& tile,
                     const Tile* rest, int step, uint16_t* counts, uint16_t* index, float* values) {
  const int from = columns.start(block), count = columns.start(block + 1) - from,
            R = conv.tile_rows, all = rest ? 2 * count : count;
  const auto row_mask = [&](int k) {
    return k < count ? tile.row_masks[from + k] : rest->row_masks[from + k - count];
  };
  int next[1 << kMaxTileRows] = {}, kept = 0;
  for (int k = 0; k < all; k++)
    next[row_mask(k)]++;
  for (int mask = 1; mask < 1 << R; mask++) {
    counts[mask - 1] = static_cast<uint16_t>(next[mask]);
    next[mask] = std::exchange(kept, kept + next[mask]);
  }
  next[0] = kept;  // columns without weights come last and are not stored
  std::array<uint16_t, 1 << 11> order;
  for (int k = 0; k < all; k++)
    order[next[row_mask(k)]++] = static_cast<uint16_t>(k);
  float* const begin = values;
  for (int i = 0; i < kept; i++) {
    const int k = order[i], mask = row_mask(k), column = k < count ? k : k - count;
    index[i] = static_cast<uint16_t>(column * step);
    // Without a branch: a zero weight is overwritten by the next weight.
    const float* element = &(k < count ? tile : *rest).elements[from + column];
    for (int r = 0; r < R; r++, element += columns.count()) {
      *values = *element;
      values += mask >> r & 1;
    }
  }
  return {static_cast<size_t>(kept), static_cast<size_t>(values - begin)};
}

// Rowwise counts: of each block and chunk, the rows with few columns first.
std::vector<uint16_t> sort_rows(const PackedConv& conv, const std::vector<Extent>& extents) {
  std::vector<uint16_t> counts, order;
  for (const Extent* block = extents.data(); counts.size() < 2 * extents.size();
       block += conv.row_tiles)
    for (int first = 0; first < conv.row_tiles; first += conv.chunk_row_tiles) {
      order.resize(std::min(conv.chunk_row_tiles, conv.row_tiles - first));
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
        return block[first + a].columns < block[first + b].columns;
      });
      for (const uint16_t row : order) {
        counts.push_back(row);
        counts.push_back(static_cast<uint16_t>(block[first + row].columns));
      }
    }
  return counts;
}

// Where the row that rowwise counts name i-th stands among the extents.
size_t row_at(const PackedConv& conv, const std::vector<uint16_t>& counts, size_t i) {
  const size_t chunk = i % conv.row_tiles / conv.chunk_row_tiles;
  return i / conv.row_tiles * conv.row_tiles + chunk * conv.chunk_row_tiles + counts[2 * i];
}

}  // namespace

PackedConv pack_conv(const Kernels& kernels, const ConvShape& shape, const Weights& weights,
                     const float* bias, bool split_taps, bool dense, Packer packer,
                     PackedLayout layout) {
  PackedConv conv = cut_conv(kernels, shape, bias, split_taps, layout);
  const Columns columns(conv);
  const WeightRows rows(weights, shape.out_channels, columns.row_length(), packer);
  const size_t blocks = conv.segments.size(), row_tiles = conv.row_tiles, count = columns.count();
  const size_t row_masks = (size_t{1} << conv.tile_rows) - 1;
  const std::vector<float> largest = largest_weights(shape, rows, packer);
  if (!largest.empty()) scale_rows(shape, rows, largest, packer, conv);
  // First pack each row tile into scratch memory: the offset of a stream depends on the lengths of
  // all streams before it.
  struct Worker {
    Tile tile, rest;
    int64_t split = 0;
  };
  std::vector<Worker> workers(packer.pool ? packer.pool->size() : 1);
  const int limit = shape.in_type == ElementType::int8 ? kernels.int8->pair_limit : 0;
  const size_t most = limit ? 2 * count : count;             // columns of a row tile
  const size_t room = conv.tile_rows * most + kMaxTileRows;  // of its weights
  PackScratch own_scratch;
  PackScratch& scratch = packer.scratch ? *packer.scratch : own_scratch;
  uint16_t* const all_index = scratch.index(row_tiles * most);
  float* const all_values = scratch.values(row_tiles * room);
  std::vector<uint16_t> counts(blocks * row_tiles * row_masks);
  std::vector<Extent> extents(blocks * row_tiles);  // [block][row tile], as counts
  packer.parallel(conv.row_tiles, [&](int tile, int worker) {
    auto& [first, rest, split] = workers[worker];
    first.elements.resize(conv.tile_rows * count);
    first.row_masks.resize(count);
    columns.read(conv, rows, tile, largest, first.elements.data());
    columns.find_row_masks(conv, first.elements.data(), dense, first.row_masks.data());
    if (limit) {
      split += split_pairs(first.elements, limit, rest.elements);
      rest.row_masks.resize(count);
      columns.find_row_masks(conv, rest.elements.data(), false, rest.row_masks.data());
    }
    uint16_t* index = &all_index[tile * most];
    float* values = &all_values[tile * room];
    for (size_t block = 0; block < blocks; block++) {
      const size_t at = block * row_tiles + tile;
      const Extent e = pack_row_tile(conv, columns, block, first, limit ? &rest : nullptr,
                                     index_step(kernels), &counts[at * row_masks], index, values);
      extents[at] = e;
      index += e.columns;
      values += e.weights;
    }
  });
  if (layout == PackedLayout::rowwise) counts = sort_rows(conv, extents);
  Extent all;
  std::vector<Extent> before(blocks * row_tiles);
  for (size_t i = 0; i < before.size(); i++) {
    const size_t at = layout == PackedLayout::rowwise ? row_at(conv, counts, i) : i;
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
    const uint16_t* index = &all_index[tile * most];
    const float* values = &all_values[tile * room];
    for (size_t at = tile; at < extents.size(); at += row_tiles) {
      const Extent e = extents[at];
      std::memcpy(to_index + before[at].columns, index, e.columns * sizeof(uint16_t));
      std::memcpy(to_values + before[at].weights, values, e.weights * sizeof(float));
      index += e.columns;
      values += e.weights;
    }
  });
  for (const Worker& worker : workers)
    conv.split += worker.split;
  conv.owner = memory;
  conv.packed = {memory.get(), size};
  set_streams(conv, conv.packed);
  return conv;
}
}  // namespace sparsedet
