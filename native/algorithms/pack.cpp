#include "algorithms/pack.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "kernels/elements.h"

namespace sparsedet {

namespace {

constexpr int kPanelBytes = 32 * 1024;
constexpr int kChunkRowTiles = 52;  // x 31 row masks a block: as much as the branch predictor holds

int choose_tile_rows(const Kernels& kernels, ElementType type) {
  if (type == ElementType::int8) return channels_per_element(type);
  const bool packed = type != ElementType::float32;
  const auto& sparse = packed ? kernels.bf16->sparse : kernels.sparse;
  for (int rows : {5, 3})
    if (sparse[rows]) return rows;
  return 0;
}

// Length of equal blocks of about `target` columns, of `total` columns. A slightly larger block is
// better than a tiny extra one.
int block_length(int total, int target) {
  int blocks = std::max(1, (total + target / 2) / target);
  if (divide_up(total, blocks) > target + target / 8) blocks++;
  return divide_up(total, blocks);
}

std::vector<std::vector<Segment>> cut_blocks(const ConvShape& shape, int target, bool split_taps) {
  // Elements along x that a window reads: its taps, or the pairs of pixels that hold them.
  const bool pixels = shape.in_type == ElementType::pixels;
  const int before = pixels ? (shape.padding_before + 1) / 2 : shape.padding_before;
  const int across =
      pixels ? before + (shape.kernel - 1 - shape.padding_before) / 2 + 1 : shape.kernel;
  const int taps = shape.kernel * across,
            elements = element_count(shape.in_type, shape.in_channels);
  std::vector<std::vector<Segment>> blocks;
  auto segment = [&](int tap, int channel, int count) {
    return Segment{tap / across - shape.padding_before, tap % across - before, channel, count};
  };
  if (split_taps) {
    const int length = block_length(elements, target);
    for (int c = 0; c < elements; c += length)
      for (int tap = 0; tap < taps; tap++)
        blocks.push_back({segment(tap, c, std::min(length, elements - c))});
    return blocks;
  }
  const int total = taps * elements, length = block_length(total, target);
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

// The value of a finite float16; infinity and NaN become some large number.
float from_float16(uint16_t half) {
  const uint32_t rest = half & 0x7fffu, sign = (half & 0x8000u) << 16;
  // Subnormals have no leading 1: add one and subtract it again.
  const float small = std::bit_cast<float>((rest << 13) + (113u << 23)) - 0x1p-14f;
  const uint32_t normal = (rest << 13) + (112u << 23);
  return std::bit_cast<float>((rest < 0x400 ? std::bit_cast<uint32_t>(small) : normal) | sign);
}

// The rows of `Weights`, in either form.
class Rows {
 public:
  Rows(const Weights& weights, int rows, size_t length, Packer packer)
      : weights_(weights), length_(length) {
    if (weights.dense) return;
    const size_t bits = rows * length;
    bool good = weights.mask.size() == (bits + 7) / 8;
    first_.resize(rows + 1);
    if (good) {
      packer.parallel(rows, [&](int row, int) {
        each_run(row, [&](size_t, uint64_t bits) { first_[row + 1] += std::popcount(bits); });
      });
      std::partial_sum(first_.begin(), first_.end(), first_.begin());
      good =
          first_.back() == weights.count && (bits % 8 == 0 || weights.mask.back() >> bits % 8 == 0);
    }
    if (!good) throw std::invalid_argument("mask and values disagree");
  }

  // Calls put(i, value) for each weight of a row; for a mask and values only for the stored ones.
  template <class Put>
  void row(int row, const Put& put) const {
    if (weights_.dense) {
      const float* from = weights_.dense + row * length_;
      for (size_t i = 0; i < length_; i++)
        put(i, from[i]);
    } else if (weights_.half) {
      const uint16_t* next = static_cast<const uint16_t*>(weights_.values) + first_[row];
      each_set(row, [&](size_t i) { put(i, from_float16(*next++)); });
    } else {
      const float* next = static_cast<const float*>(weights_.values) + first_[row];
      each_set(row, [&](size_t i) { put(i, *next++); });
    }
  }

 private:
  // Calls use(i, bits) for runs of at most 56 mask bits, each from weight i of the row on.
  template <class Use>
  void each_run(int row, const Use& use) const {
    const size_t start = row * length_;
    for (size_t i = 0; i < length_; i += 56) {
      const size_t at = (start + i) / 8, n = std::min<size_t>(56, length_ - i);
      uint64_t bits = 0;
      std::memcpy(&bits, &weights_.mask[at], std::min<size_t>(8, weights_.mask.size() - at));
      use(i, bits >> (start + i) % 8 & ((uint64_t{1} << n) - 1));
    }
  }

  template <class Use>
  void each_set(int row, const Use& use) const {
    each_run(row, [&](size_t i, uint64_t bits) {
      for (; bits; bits &= bits - 1)
        use(i + std::countr_zero(bits));
    });
  }

  const Weights& weights_;
  const size_t length_;
  std::vector<size_t> first_;  // [rows + 1] index of each row's first value
};

// The columns of all blocks, one block after the other; puts the weights of row tiles into this
// order.
class Columns {
 public:
  Columns(const PackedConv& conv, int padding_before)
      : weights_per_element_(conv.in_type == ElementType::int8      ? 4
                             : conv.in_type == ElementType::float32 ? 1
                                                                    : 2) {
    const int taps = conv.kernel * conv.kernel;
    const bool pixels = conv.in_type == ElementType::pixels;
    position_.resize(size_t(conv.in_channels) * taps);
    for (const auto& segments : conv.segments) {
      start_.push_back(count_);
      for (const Segment& s : segments) {
        for (int element = s.channel; element < s.channel + s.count; element++, count_++)
          for (int i = 0; i < weights_per_element_; i++) {
            const int c = pixels ? element : weights_per_element_ * element + i;
            const int x = (pixels ? 2 * s.dx + i : s.dx) + padding_before;
            if (c >= conv.in_channels || x < 0 || x >= conv.kernel) continue;
            const int tap = (s.dy + padding_before) * conv.kernel + x;
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
  void read(const PackedConv& conv, const Rows& rows, int tile, const std::vector<float>& largest,
            float* elements) const {
    std::memset(elements, 0, size_t(conv.tile_rows) * count_ * sizeof(float));
    for (int r = 0; r < conv.tile_rows; r++, elements += count_) {
      const int channel = conv.channel(tile * conv.tile_rows + r);
      if (channel >= conv.out_channels) continue;
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

// Number of columns and weights of one row tile and block.
struct Extent {
  size_t columns = 0, weights = 0;
};

Extent extent(const uint16_t* counts, int row_masks) {
  static constexpr auto rows =
      [] {  // popcount of a row mask; the baseline CPU has no instruction for it
        std::array<uint32_t, 1 << kMaxTileRows> n{};
        for (unsigned p = 1; p < n.size(); p++)
          n[p] = n[p / 2] + p % 2;
        return n;
      }();
  uint32_t columns = 0, weights = 0;
  for (int p = 0; p < row_masks; p++) {
    columns += counts[p];
    weights += counts[p] * rows[p + 1];
  }
  return {columns, weights};
}

size_t round_up(size_t a, size_t b) {
  return (a + b - 1) / b * b;
}

// Sizes of the counts, of counts and indices, and of all packed bytes of a convolution. The last
// two are padded to multiples of 64 bytes, so that what follows is aligned.
size_t counts_bytes(const PackedConv& conv) {
  return conv.segments.size() * conv.row_tiles * ((size_t{1} << conv.tile_rows) - 1) *
         sizeof(uint16_t);
}

size_t index_bytes(const PackedConv& conv, size_t columns) {
  return round_up(counts_bytes(conv) + columns * sizeof(uint16_t), 64);
}

size_t packed_bytes(const PackedConv& conv, Extent e) {
  return round_up(index_bytes(conv, e.columns) + e.weights * sizeof(float), 64);
}

// Sets the spans of the streams from the counts at the beginning of `bytes`, and shortens `bytes`
// to this convolution. False if it is longer than `bytes`.
bool set_streams(PackedConv& conv, std::span<const std::byte>& bytes) {
  if (bytes.size() < counts_bytes(conv)) return false;
  const int row_masks = (1 << conv.tile_rows) - 1;
  auto* counts = reinterpret_cast<const uint16_t*>(bytes.data());
  std::vector<Extent> extents;
  Extent all;
  for (size_t block = 0; block < conv.segments.size(); block++)
    for (int first = 0; first < conv.row_tiles; first += conv.chunk_row_tiles) {
      Extent& e = extents.emplace_back();
      for (int tile = first; tile < std::min(first + conv.chunk_row_tiles, conv.row_tiles);
           tile++, counts += row_masks) {
        const Extent one = extent(counts, row_masks);
        e.columns += one.columns;
        e.weights += one.weights;
      }
      all.columns += e.columns;
      all.weights += e.weights;
    }
  if (bytes.size() < packed_bytes(conv, all)) return false;
  auto* index = counts;
  auto* values = reinterpret_cast<const float*>(bytes.data() + index_bytes(conv, all.columns));
  counts = reinterpret_cast<const uint16_t*>(bytes.data());
  bytes = bytes.first(packed_bytes(conv, all));
  conv.streams.assign(conv.segments.size(), {});
  auto e = extents.begin();
  for (auto& streams : conv.streams)
    for (int first = 0; first < conv.row_tiles; first += conv.chunk_row_tiles, ++e) {
      const size_t n = size_t(std::min(conv.chunk_row_tiles, conv.row_tiles - first)) * row_masks;
      streams.push_back({{index, e->columns}, {counts, n}, {values, e->weights}});
      counts += n;
      index += e->columns;
      values += e->weights;
    }
  return true;
}

// Distance between two columns of a panel, in units of 8 bytes.
int index_step(const Kernels& kernels) {
  return kVectors * kernels.lanes * static_cast<int>(sizeof(float)) / 8;
}

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

// A convolution without its streams: blocks, chunks and bias.
PackedConv cut_conv(const Kernels& kernels, const ConvShape& shape, const float* bias,
                    bool split_taps) {
  PackedConv conv{};
  conv.in_channels = shape.in_channels;
  conv.out_channels = shape.out_channels;
  conv.kernel = shape.kernel;
  conv.stride = shape.stride;
  conv.in_type = shape.in_type;
  conv.out_type = shape.out_type;
  conv.relu = shape.relu;
  conv.tile_rows = choose_tile_rows(kernels, shape.in_type);
  const int pair = shape.out_type == ElementType::bfloat16 ? 2 : 1;  // row tiles that stay together
  const int units = divide_up(shape.out_channels, conv.tile_rows * pair);
  const int chunk_units = kChunkRowTiles / pair;
  conv.chunks = std::max(1, (units + chunk_units / 2) / chunk_units);
  conv.chunk_row_tiles = divide_up(units, conv.chunks) * pair;
  conv.row_tiles = units * pair;
  conv.chunks = divide_up(conv.row_tiles, conv.chunk_row_tiles);
  conv.bias.assign(static_cast<size_t>(conv.row_tiles) * conv.tile_rows, 0.0f);
  for (size_t row = 0; bias && row < conv.bias.size(); row++)
    if (conv.channel(row) < shape.out_channels) conv.bias[row] = bias[conv.channel(row)];
  const int target = kPanelBytes / (kVectors * kernels.lanes * static_cast<int>(sizeof(float)));
  conv.segments = cut_blocks(shape, target, split_taps);
  return conv;
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

int64_t nonzero_elements(const PackedConv& conv) {
  int64_t nonzero = 0;
  for (const auto& streams : conv.streams)
    for (const Stream& stream : streams)
      for (const float& element : stream.values)
        nonzero += std::bit_cast<uint32_t>(element) != 0;
  return nonzero;
}

int64_t Weights::nonzero(size_t size, Pool& pool) const {
  constexpr size_t kPiece = 1 << 16;
  const size_t end = dense ? size : count;
  std::atomic<int64_t> all{0};
  pool.parallel(static_cast<int>((end + kPiece - 1) / kPiece), [&](int piece, int) {
    const size_t from = piece * kPiece, n = std::min(kPiece, end - from);
    int nonzero = 0;
    if (dense || !half) {
      const float* w = (dense ? dense : static_cast<const float*>(values)) + from;
      for (size_t i = 0; i < n; i++)
        nonzero += w[i] != 0;
    } else {
      const uint16_t* w = static_cast<const uint16_t*>(values) + from;
      for (size_t i = 0; i < n; i++)
        nonzero += (w[i] & 0x7fff) != 0;
    }
    all += nonzero;
  });
  return all;
}

PackedConv pack_conv(const Kernels& kernels, const ConvShape& shape, const Weights& weights,
                     const float* bias, bool split_taps, bool dense, Packer packer) {
  PackedConv conv = cut_conv(kernels, shape, bias, split_taps);
  const Columns columns(conv, shape.padding_before);
  const Rows rows(weights, shape.out_channels, columns.row_length(), packer);
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

PackedConv unpack_conv(const Kernels& kernels, const ConvShape& shape,
                       std::span<const std::byte>& packed, std::shared_ptr<const void> owner,
                       const float* bias, bool split_taps) {
  PackedConv conv = cut_conv(kernels, shape, bias, split_taps);
  conv.owner = std::move(owner);
  conv.packed = packed;
  bool good = set_streams(conv, conv.packed);
  const unsigned step = index_step(kernels);
  for (size_t block = 0; good && block < conv.streams.size(); block++) {
    const unsigned end = step * conv.columns(block);
    for (const Stream& stream : conv.streams[block]) {
      unsigned bad = 0;
      for (const unsigned at : stream.index)
        bad |= (at & (step - 1)) | (at >= end);
      good &= bad == 0;
    }
  }
  if (!good) throw std::invalid_argument("packed weights do not fit the operation");
  packed = packed.subspan(conv.packed.size());
  return conv;
}

uint64_t checksum(std::span<const std::byte> bytes, Pool& pool) {
  constexpr size_t kPiece = size_t{256} << 10, kLanes = 8;
  constexpr uint64_t kFactor = 0x9e3779b97f4a7c15;
  const auto sum = [](const std::byte* data, size_t size) {
    uint64_t lanes[kLanes] = {}, value, all = size;
    for (size_t i = 0; i < size; i += 8) {
      value = 0;
      std::memcpy(&value, data + i, std::min<size_t>(8, size - i));
      uint64_t& lane = lanes[i / 8 % kLanes];
      lane = (lane ^ value) * kFactor;
      lane ^= lane >> 32;
    }
    for (uint64_t lane : lanes) {
      all = (all ^ lane) * kFactor;
      all ^= all >> 32;
    }
    return all;
  };
  std::vector<uint64_t> pieces((bytes.size() + kPiece - 1) / kPiece);
  pool.parallel(static_cast<int>(pieces.size()), [&](int i, int) {
    pieces[i] = sum(&bytes[i * kPiece], std::min(kPiece, bytes.size() - i * kPiece));
  });
  return sum(reinterpret_cast<const std::byte*>(pieces.data()), pieces.size() * sizeof(uint64_t));
}

static Winograd begin_winograd(const ConvShape& shape, const float* bias) {
  Winograd conv;
  conv.relu = shape.relu;
  conv.bias.assign(shape.out_channels, 0.0f);
  if (bias) conv.bias.assign(bias, bias + shape.out_channels);
  return conv;
}

// The product over channels at one point.
static ConvShape winograd_product(const ConvShape& shape) {
  return {shape.in_channels, shape.out_channels, 1, 1, 0, false};
}

Winograd unpack_winograd(const Kernels& kernels, const ConvShape& shape,
                         std::span<const std::byte>& packed, std::shared_ptr<const void> owner,
                         const float* bias) {
  Winograd conv = begin_winograd(shape, bias);
  for (int i = 0; i < kPoints; i++)
    conv.points.push_back(
        unpack_conv(kernels, winograd_product(shape), packed, owner, nullptr, true));
  return conv;
}

Winograd pack_winograd(const Kernels& kernels, const ConvShape& shape, const Weights& weights,
                       const float* bias, Packer packer) {
  constexpr double transform[kTileInput][3] = {{1 / 4., 0, 0},
                                               {-1 / 6., -1 / 6., -1 / 6.},
                                               {-1 / 6., 1 / 6., -1 / 6.},
                                               {1 / 24., 1 / 12., 1 / 6.},
                                               {1 / 24., -1 / 12., 1 / 6.},
                                               {0, 0, 1}};
  const ptrdiff_t row_filters = shape.in_channels, filters = row_filters * shape.out_channels;
  Winograd conv = begin_winograd(shape, bias);
  std::vector<float> point(filters), filled;
  const float* weight = weights.dense;
  if (!weight) {  // Winograd layers have few zeros: as an array they are hardly larger
    const size_t length = size_t(shape.in_channels) * 9;
    filled.resize(shape.out_channels * length);
    const Rows rows(weights, shape.out_channels, length, packer);
    for (int row = 0; row < shape.out_channels; row++)
      rows.row(row, [&](size_t i, float w) { filled[row * length + i] = w; });
    weight = filled.data();
  }
  for (int i = 0; i < kTileInput; i++)
    for (int j = 0; j < kTileInput; j++) {
      const auto transform_row = [&](int row, int) {
        for (ptrdiff_t f = row * row_filters; f < (row + 1) * row_filters; f++) {
          double sum = 0;
          for (int y = 0; y < 3; y++)
            for (int x = 0; x < 3; x++)
              sum += transform[i][y] * transform[j][x] * double{weight[f * 9 + y * 3 + x]};
          point[f] = static_cast<float>(sum);
        }
      };
      packer.parallel(shape.out_channels, transform_row);
      conv.points.push_back(
          pack_conv(kernels, winograd_product(shape), point.data(), nullptr, true, true, packer));
    }
  return conv;
}

}  // namespace sparsedet
