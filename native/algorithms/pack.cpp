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

#include "kernels/bfloat16.h"

namespace sparsedet {

namespace {

constexpr int kPanelBytes = 32 * 1024;
constexpr int kChunkGroups = 52;  // x 31 patterns a block: within the branch predictor's reach

int divide_up(int a, int b) {
  return (a + b - 1) / b;
}

int choose_group(const Kernels& kernels, Type type) {
  if (type == Type::int8) return channels_a_word(type);
  const bool words = type != Type::float32;
  const auto& sparse = words ? kernels.words->sparse : kernels.sparse;
  for (int group : {5, 3})
    if (sparse[group]) return group;
  return 0;
}

// Cut `total` columns into equal blocks of about `target`; a small excess beats a short rest.
int block_length(int total, int target) {
  int blocks = std::max(1, (total + target / 2) / target);
  if (divide_up(total, blocks) > target + target / 8) blocks++;
  return divide_up(total, blocks);
}

std::vector<std::vector<Segment>> cut_blocks(const ConvShape& shape, int target, bool split_taps) {
  // Words along x that a window reads: its taps, or the pairs of pixels that hold them.
  const bool pixels = shape.in == Type::pixels;
  const int before = pixels ? (shape.padding_before + 1) / 2 : shape.padding_before;
  const int across =
      pixels ? before + (shape.kernel - 1 - shape.padding_before) / 2 + 1 : shape.kernel;
  const int taps = shape.kernel * across, words = words_of(shape.in, shape.in_channels);
  std::vector<std::vector<Segment>> blocks;
  auto segment = [&](int tap, int channel, int count) {
    return Segment{tap / across - shape.padding_before, tap % across - before, channel, count};
  };
  if (split_taps) {
    const int length = block_length(words, target);
    for (int c = 0; c < words; c += length)
      for (int tap = 0; tap < taps; tap++)
        blocks.push_back({segment(tap, c, std::min(length, words - c))});
    return blocks;
  }
  const int total = taps * words, length = block_length(total, target);
  for (int from = 0; from < total; from += length) {
    blocks.emplace_back();
    for (int k = from, end = std::min(total, from + length); k < end;) {
      const int channel = k % words;
      const int count = std::min(end - k, words - channel);
      blocks.back().push_back(segment(k / words, channel, count));
      k += count;
    }
  }
  return blocks;
}

// Any float16 that is finite; one that is not becomes some large number.
float from_float16(uint16_t half) {
  const uint32_t rest = half & 0x7fffu, sign = (half & 0x8000u) << 16;
  // Subnormal ones have no leading 1: it is put in and subtracted again.
  const float small = std::bit_cast<float>((rest << 13) + (113u << 23)) - 0x1p-14f;
  const uint32_t normal = (rest << 13) + (112u << 23);
  return std::bit_cast<float>((rest < 0x400 ? std::bit_cast<uint32_t>(small) : normal) | sign);
}

// Rows of weights, whichever way they are given.
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
        each_word(row, [&](size_t, uint64_t word) { first_[row + 1] += std::popcount(word); });
      });
      std::partial_sum(first_.begin(), first_.end(), first_.begin());
      good =
          first_.back() == weights.count && (bits % 8 == 0 || weights.mask.back() >> bits % 8 == 0);
    }
    if (!good) throw std::invalid_argument("mask and values disagree");
  }

  // put(i, value) for the weights of a row: for all, or for those that are stored.
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
  // use(i, bits) for runs of at most 56 bits of the mask that begin at weight i of the row.
  template <class Use>
  void each_word(int row, const Use& use) const {
    const size_t start = row * length_;
    for (size_t i = 0; i < length_; i += 56) {
      const size_t at = (start + i) / 8, n = std::min<size_t>(56, length_ - i);
      uint64_t word = 0;
      std::memcpy(&word, &weights_.mask[at], std::min<size_t>(8, weights_.mask.size() - at));
      use(i, word >> (start + i) % 8 & ((uint64_t{1} << n) - 1));
    }
  }

  template <class Use>
  void each_set(int row, const Use& use) const {
    each_word(row, [&](size_t i, uint64_t word) {
      for (; word; word &= word - 1)
        use(i + std::countr_zero(word));
    });
  }

  const Weights& weights_;
  const size_t length_;
  std::vector<size_t> first_;  // value of each row
};

// The columns of all blocks one after the other, and a group of rows of weights in that order.
class Columns {
 public:
  Columns(const PackedConv& conv, int padding_before)
      : share_(conv.in == Type::int8      ? 4
               : conv.in == Type::float32 ? 1
                                          : 2) {
    const int taps = conv.kernel * conv.kernel;
    const bool pixels = conv.in == Type::pixels;
    place_.resize(size_t(conv.in_channels) * taps);
    for (const auto& segments : conv.segments) {
      start_.push_back(count_);
      for (const Segment& s : segments) {
        for (int word = s.channel; word < s.channel + s.count; word++, count_++)
          for (int part = 0; part < share_; part++) {
            const int c = pixels ? word : share_ * word + part;
            const int x = (pixels ? 2 * s.dx + part : s.dx) + padding_before;
            if (c >= conv.in_channels || x < 0 || x >= conv.kernel) continue;
            const int tap = (s.dy + padding_before) * conv.kernel + x;
            place_[size_t(c) * taps + tap] = share_ * count_ + part;
          }
      }
    }
    start_.push_back(count_);
  }

  int count() const { return count_; }
  int start(size_t block) const { return start_[block]; }
  size_t row_length() const { return place_.size(); }

  // words: [G][count], 0.0f where there is no weight. largest: of each output channel, for int8.
  void read(const PackedConv& conv, const Rows& rows, int group, const std::vector<float>& largest,
            float* words) const {
    std::memset(words, 0, size_t(conv.group) * count_ * sizeof(float));
    for (int r = 0; r < conv.group; r++, words += count_) {
      const int channel = conv.channel(group * conv.group + r);
      if (channel >= conv.out_channels) continue;
      if (share_ == 4) {
        const float times = largest[channel] > 0 ? 127 / largest[channel] : 0;
        rows.row(channel, [&](size_t i, float w) {  // the lowest channel lies first
          reinterpret_cast<int8_t*>(words)[place_[i]] =
              static_cast<int8_t>(std::nearbyint(w * times));
        });
      } else if (share_ == 2)
        rows.row(channel, [&](size_t i, float w) {
          const auto half = static_cast<uint16_t>(to_bfloat16(w));  // the even one lies first
          std::memcpy(reinterpret_cast<char*>(words) + 2 * place_[i], &half, 2);
        });
      else
        rows.row(channel, [&](size_t i, float w) { words[place_[i]] = w; });
    }
  }

  // patterns: [count], which rows have a weight there.
  void find_patterns(const PackedConv& conv, const float* words, bool dense,
                     uint8_t* patterns) const {
    // A zero of floats may have either sign.
    const uint32_t digits = share_ == 4 ? 0xffffffffu : share_ == 2 ? 0x7fff7fffu : 0x7fffffffu;
    std::memset(patterns, dense ? (1 << conv.group) - 1 : 0, count_);
    for (int r = 0; !dense && r < conv.group; r++, words += count_)
      for (int k = 0; k < count_; k++)
        patterns[k] |= ((std::bit_cast<uint32_t>(words[k]) & digits) != 0) << r;
  }

 private:
  const int share_;  // weights of a word
  int count_ = 0;
  std::vector<int> start_;      // [blocks + 1]
  std::vector<int32_t> place_;  // of each weight of a row: its column, or part of a word
};

// How many columns and weights the `counts` of one group and block stand for.
struct Extent {
  size_t columns = 0, weights = 0;
};

Extent extent(const uint16_t* counts, int patterns) {
  static constexpr auto rows = [] {  // of a pattern; the instruction is not in the baseline
    std::array<uint32_t, 1 << kMaxGroup> n{};
    for (unsigned p = 1; p < n.size(); p++)
      n[p] = n[p / 2] + p % 2;
    return n;
  }();
  uint32_t columns = 0, weights = 0;
  for (int p = 0; p < patterns; p++) {
    columns += counts[p];
    weights += counts[p] * rows[p + 1];
  }
  return {columns, weights};
}

size_t round_up(size_t a, size_t b) {
  return (a + b - 1) / b * b;
}

// Bytes that counts lie in, and all, by the counts of a convolution. In all places multiples of
// 64, that neighbours are aligned.
size_t counts_bytes(const PackedConv& conv) {
  return conv.segments.size() * conv.groups * ((size_t{1} << conv.group) - 1) * sizeof(uint16_t);
}

size_t index_bytes(const PackedConv& conv, size_t columns) {
  return round_up(counts_bytes(conv) + columns * sizeof(uint16_t), 64);
}

size_t packed_bytes(const PackedConv& conv, Extent e) {
  return round_up(index_bytes(conv, e.columns) + e.weights * sizeof(float), 64);
}

// Sets the streams' spans from the counts at the beginning of `bytes`, and cuts `bytes` to what
// is packed; false if that is more than there is.
bool set_streams(PackedConv& conv, std::span<const std::byte>& bytes) {
  if (bytes.size() < counts_bytes(conv)) return false;
  const int patterns = (1 << conv.group) - 1;
  auto* counts = reinterpret_cast<const uint16_t*>(bytes.data());
  std::vector<Extent> extents;
  Extent all;
  for (size_t block = 0; block < conv.segments.size(); block++)
    for (int first = 0; first < conv.groups; first += conv.chunk_groups) {
      Extent& e = extents.emplace_back();
      for (int g = first; g < std::min(first + conv.chunk_groups, conv.groups);
           g++, counts += patterns) {
        const Extent one = extent(counts, patterns);
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
    for (int first = 0; first < conv.groups; first += conv.chunk_groups, ++e) {
      const size_t n = size_t(std::min(conv.chunk_groups, conv.groups - first)) * patterns;
      streams.push_back({{index, e->columns}, {counts, n}, {values, e->weights}});
      counts += n;
      index += e->columns;
      values += e->weights;
    }
  return true;
}

// Units of 8 bytes between two columns of a panel.
int index_step(const Kernels& kernels) {
  return kVectors * kernels.lanes * static_cast<int>(sizeof(float)) / 8;
}

// Writes the streams of one group and block: columns [from, to) in the order of their patterns.
Extent write_group(const PackedConv& conv, const Columns& columns, size_t block, const float* words,
                   const uint8_t* patterns, int step, uint16_t* counts, uint16_t* index,
                   float* values) {
  const int from = columns.start(block), count = columns.start(block + 1) - from, G = conv.group;
  patterns += from;
  int next[1 << kMaxGroup] = {}, kept = 0;
  for (int k = 0; k < count; k++)
    next[patterns[k]]++;
  for (int p = 1; p < 1 << G; p++) {
    counts[p - 1] = static_cast<uint16_t>(next[p]);
    next[p] = std::exchange(kept, kept + next[p]);
  }
  next[0] = kept;  // behind all that is kept
  std::array<uint16_t, 1 << 10> order;
  for (int k = 0; k < count; k++)
    order[next[patterns[k]]++] = static_cast<uint16_t>(k);
  float* const begin = values;
  for (int i = 0; i < kept; i++) {
    const int k = order[i], pattern = patterns[k];
    index[i] = static_cast<uint16_t>(k * step);
    // Without a branch: what is not wanted is written over by what comes next.
    const float* word = words + from + k;
    for (int r = 0; r < G; r++, word += columns.count()) {
      *values = *word;
      values += pattern >> r & 1;
    }
  }
  return {static_cast<size_t>(kept), static_cast<size_t>(values - begin)};
}

// A convolution without its streams: how it is cut, and the bias.
PackedConv cut_conv(const Kernels& kernels, const ConvShape& shape, const float* bias,
                    bool split_taps) {
  PackedConv conv{};
  conv.in_channels = shape.in_channels;
  conv.out_channels = shape.out_channels;
  conv.kernel = shape.kernel;
  conv.stride = shape.stride;
  conv.in = shape.in;
  conv.out = shape.out;
  conv.relu = shape.relu;
  conv.group = choose_group(kernels, shape.in);
  const int pair = shape.out == Type::bfloat16 ? 2 : 1;  // groups that stay together
  const int units = divide_up(shape.out_channels, conv.group * pair);
  const int chunk_units = kChunkGroups / pair;
  conv.chunks = std::max(1, (units + chunk_units / 2) / chunk_units);
  conv.chunk_groups = divide_up(units, conv.chunks) * pair;
  conv.groups = units * pair;
  conv.chunks = divide_up(conv.groups, conv.chunk_groups);
  conv.bias.assign(static_cast<size_t>(conv.groups) * conv.group, 0.0f);
  for (size_t row = 0; bias && row < conv.bias.size(); row++)
    if (conv.channel(row) < shape.out_channels) conv.bias[row] = bias[conv.channel(row)];
  const int target = kPanelBytes / (kVectors * kernels.lanes * static_cast<int>(sizeof(float)));
  conv.segments = cut_blocks(shape, target, split_taps);
  return conv;
}

// Scales and biases of an int8 convolution, so that what leaves is in the units of `out`.
void scale_rows(const ConvShape& shape, const std::vector<float>& largest, PackedConv& conv) {
  const bool words = shape.out == Type::int8;
  const float unit = words ? shape.out_q.scale : 1.0f;
  conv.residual_scale = shape.residual_q.scale / unit;
  conv.scale.assign(conv.bias.size(), 0.0f);
  for (int row = 0; row < shape.out_channels; row++) {
    conv.scale[row] = largest[row] / 127 * shape.in_q.scale / unit;
    conv.bias[row] /= unit;
    if (words)
      conv.bias[row] += static_cast<float>(shape.out_q.zero) -
                        static_cast<float>(shape.residual_q.zero) * conv.residual_scale;
  }
}

}  // namespace

int64_t nonzero_words(const PackedConv& conv) {
  int64_t words = 0;
  for (const auto& streams : conv.streams)
    for (const Stream& stream : streams)
      for (const float& word : stream.values)
        words += std::bit_cast<uint32_t>(word) != 0;
  return words;
}

int64_t Weights::nonzero(size_t size, Pool& pool) const {
  constexpr size_t kPiece = 1 << 16;
  const size_t end = dense ? size : count;
  std::atomic<int64_t> all{0};
  pool.parallel(static_cast<int>((end + kPiece - 1) / kPiece), [&](int piece, int) {
    const size_t from = piece * kPiece, n = std::min(kPiece, end - from);
    int found = 0;
    if (dense || !half) {
      const float* w = (dense ? dense : static_cast<const float*>(values)) + from;
      for (size_t i = 0; i < n; i++)
        found += w[i] != 0;
    } else {
      const uint16_t* w = static_cast<const uint16_t*>(values) + from;
      for (size_t i = 0; i < n; i++)
        found += (w[i] & 0x7fff) != 0;
    }
    all += found;
  });
  return all;
}

PackedConv pack_conv(const Kernels& kernels, const ConvShape& shape, const Weights& weights,
                     const float* bias, bool split_taps, bool dense, Packer packer) {
  PackedConv conv = cut_conv(kernels, shape, bias, split_taps);
  const Columns columns(conv, shape.padding_before);
  const Rows rows(weights, shape.out_channels, columns.row_length(), packer);
  const size_t blocks = conv.segments.size(), groups = conv.groups, count = columns.count();
  const size_t patterns = (size_t{1} << conv.group) - 1;
  std::vector<float> largest;  // of each output channel
  if (shape.in == Type::int8) {
    largest.assign(shape.out_channels, 0.0f);
    packer.parallel(shape.out_channels, [&](int row, int) {
      rows.row(row, [&](size_t, float w) { largest[row] = std::max(largest[row], std::abs(w)); });
    });
    scale_rows(shape, largest, conv);
  }
  // First each group by itself, for a stream's place depends on how much lies before it.
  struct Worker {
    std::vector<float> words;
    std::vector<uint8_t> patterns;
  };
  std::vector<Worker> workers(packer.pool ? packer.pool->size() : 1);
  const size_t room = conv.group * count + kMaxGroup;  // values of a group, and what is not wanted
  PackScratch own_scratch;
  PackScratch& scratch = packer.scratch ? *packer.scratch : own_scratch;
  uint16_t* const all_index = scratch.index(groups * count);
  float* const all_values = scratch.values(groups * room);
  std::vector<uint16_t> counts(blocks * groups * patterns);
  std::vector<Extent> extents(blocks * groups);  // [block][group], as counts
  packer.parallel(conv.groups, [&](int group, int worker) {
    auto& [words, found] = workers[worker];
    words.resize(conv.group * count);
    found.resize(count);
    columns.read(conv, rows, group, largest, words.data());
    columns.find_patterns(conv, words.data(), dense, found.data());
    uint16_t* index = &all_index[group * count];
    float* values = &all_values[group * room];
    for (size_t block = 0; block < blocks; block++) {
      const size_t at = block * groups + group;
      const Extent e = write_group(conv, columns, block, words.data(), found.data(),
                                   index_step(kernels), &counts[at * patterns], index, values);
      extents[at] = e;
      index += e.columns;
      values += e.weights;
    }
  });
  Extent all;
  std::vector<Extent> before(blocks * groups);
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
  packer.parallel(conv.groups, [&](int group, int) {
    const uint16_t* index = &all_index[group * count];
    const float* values = &all_values[group * room];
    for (size_t at = group; at < extents.size(); at += groups) {
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
    uint64_t lanes[kLanes] = {}, word, all = size;
    for (size_t i = 0; i < size; i += 8) {
      word = 0;
      std::memcpy(&word, data + i, std::min<size_t>(8, size - i));
      uint64_t& lane = lanes[i / 8 % kLanes];
      lane = (lane ^ word) * kFactor;
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
  if (!weight) {  // this method is for layers with few zeros: one of them as an array is no more
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
