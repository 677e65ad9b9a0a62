#include "pack.h"

#include <algorithm>
#include <bit>

#include "bfloat16.h"

namespace sparsedet {

namespace {

constexpr int kPanelBytes = 32 * 1024;
constexpr int kChunkGroups = 52;  // x 31 patterns a block: within the branch predictor's reach

int divide_up(int a, int b) { return (a + b - 1) / b; }

int choose_group(const Kernels& kernels, Type type) {
  const bool words = type == Type::bfloat16;
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
  const int taps = shape.kernel * shape.kernel, words = words_of(shape.in, shape.in_channels);
  std::vector<std::vector<Segment>> blocks;
  auto segment = [&](int tap, int channel, int count) {
    return Segment{tap / shape.kernel - shape.padding_before,
                   tap % shape.kernel - shape.padding_before, channel, count};
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

// The weights of one column, as a word for each row of a group; 0.0f where a row does not exist.
class Columns {
 public:
  Columns(const ConvShape& shape, const float* weight, const std::vector<Segment>& segments)
      : weight_(weight), taps_(shape.kernel * shape.kernel), row_(ptrdiff_t(shape.in_channels) * taps_),
        pairs_(shape.in == Type::bfloat16) {
    for (const Segment& s : segments) {
      const int tap = (s.dy + shape.padding_before) * shape.kernel + s.dx + shape.padding_before;
      for (int c = s.channel; c < s.channel + s.count; c++) {
        const int channel = pairs_ ? 2 * c : c;
        columns_.push_back({ptrdiff_t(channel) * taps_ + tap, channel + 1 < shape.in_channels});
      }
    }
  }

  int count() const { return static_cast<int>(columns_.size()); }

  bool is_zero(float word) const {  // of either sign
    return (std::bit_cast<uint32_t>(word) & (pairs_ ? 0x7fff7fffu : 0x7fffffffu)) == 0;
  }

  float at(int channel, int column) const {
    const auto [offset, has_odd] = columns_[column];
    const float* w = weight_ + channel * row_ + offset;
    return pairs_ ? join_bfloat16(w[0], has_odd ? w[taps_] : 0.0f) : w[0];
  }

 private:
  struct Column {
    ptrdiff_t offset;  // within a row of weights
    bool has_odd;
  };
  const float* weight_;
  const int taps_;
  const ptrdiff_t row_;
  const bool pairs_;
  std::vector<Column> columns_;
};

Stream pack_stream(const PackedConv& conv, const Columns& columns, int lanes, int first_group,
                   int groups, bool dense) {
  const int group = conv.group, patterns = 1 << group, count = columns.count();
  Stream out;
  out.counts.assign(static_cast<size_t>(groups) * (patterns - 1), 0);
  std::vector<int> pattern(count), start(patterns + 1), order(count);
  std::vector<float> words(static_cast<size_t>(count) * group);
  for (int g = 0; g < groups; g++) {
    std::fill(start.begin(), start.end(), 0);
    for (int k = 0; k < count; k++) {
      int bits = 0;
      for (int r = 0; r < group; r++) {
        const int channel = conv.channel((first_group + g) * group + r);
        const float word = channel < conv.out_channels ? columns.at(channel, k) : 0.0f;
        words[k * group + r] = word;
        bits |= (dense || !columns.is_zero(word)) << r;
      }
      pattern[k] = bits;
      start[bits + 1]++;
    }
    for (int p = 1; p < patterns; p++) out.counts[g * (patterns - 1) + p - 1] = start[p + 1];
    for (int p = 0; p < patterns; p++) start[p + 1] += start[p];
    for (int k = 0; k < count; k++) order[start[pattern[k]]++] = k;
    for (int k : order) {
      if (!pattern[k]) continue;
      out.index.push_back(static_cast<uint16_t>(k * kVectors * lanes * sizeof(float) / 8));
      for (int r = 0; r < group; r++)
        if (pattern[k] >> r & 1) out.values.push_back(words[k * group + r]);
    }
  }
  out.index.shrink_to_fit();
  out.values.shrink_to_fit();
  return out;
}

}  // namespace

PackedConv pack_conv(const Kernels& kernels, const ConvShape& shape, const float* weight,
                     const float* bias, bool split_taps, bool dense) {
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
  for (const auto& segments : conv.segments) {
    const Columns columns(shape, weight, segments);
    auto& streams = conv.streams.emplace_back();
    for (int first = 0; first < conv.groups; first += conv.chunk_groups)
      streams.push_back(pack_stream(conv, columns, kernels.lanes, first,
                                    std::min(conv.chunk_groups, conv.groups - first), dense));
  }
  return conv;
}

Winograd pack_winograd(const Kernels& kernels, const ConvShape& shape, const float* weight,
                       const float* bias) {
  constexpr double transform[kTileInput][3] = {
      {1 / 4., 0, 0},           {-1 / 6., -1 / 6., -1 / 6.}, {-1 / 6., 1 / 6., -1 / 6.},
      {1 / 24., 1 / 12., 1 / 6.}, {1 / 24., -1 / 12., 1 / 6.}, {0, 0, 1}};
  const ptrdiff_t filters = ptrdiff_t(shape.out_channels) * shape.in_channels;
  Winograd conv;
  conv.relu = shape.relu;
  conv.bias.assign(shape.out_channels, 0.0f);
  if (bias) conv.bias.assign(bias, bias + shape.out_channels);
  std::vector<float> point(filters);
  const ConvShape product{shape.in_channels, shape.out_channels, 1, 1, 0, false};
  for (int i = 0; i < kTileInput; i++)
    for (int j = 0; j < kTileInput; j++) {
      for (ptrdiff_t f = 0; f < filters; f++) {
        double sum = 0;
        for (int y = 0; y < 3; y++)
          for (int x = 0; x < 3; x++) sum += transform[i][y] * transform[j][x] * double{weight[f * 9 + y * 3 + x]};
        point[f] = static_cast<float>(sum);
      }
      conv.points.push_back(pack_conv(kernels, product, point.data(), nullptr, true, true));
    }
  return conv;
}

}  // namespace sparsedet
