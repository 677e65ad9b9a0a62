#include "pack.h"

#include <algorithm>

namespace sparsedet {

namespace {

constexpr int kPanelBytes = 32 * 1024;
constexpr int kChunkGroups = 52;  // x 31 patterns a block: within the branch predictor's reach

int divide_up(int a, int b) { return (a + b - 1) / b; }

int choose_group(const Kernels& kernels) {
  for (int group : {5, 3})
    if (kernels.sparse[group]) return group;
  return 0;
}

// Cut `total` columns into equal blocks of about `target`; a small excess beats a short rest.
int block_length(int total, int target) {
  int blocks = std::max(1, (total + target / 2) / target);
  if (divide_up(total, blocks) > target + target / 8) blocks++;
  return divide_up(total, blocks);
}

std::vector<std::vector<Segment>> cut_blocks(const ConvShape& shape, int target, bool split_taps) {
  const int taps = shape.kernel * shape.kernel;
  std::vector<std::vector<Segment>> blocks;
  auto segment = [&](int tap, int channel, int count) {
    return Segment{tap / shape.kernel - shape.padding_before,
                   tap % shape.kernel - shape.padding_before, channel, count};
  };
  if (split_taps) {
    const int length = block_length(shape.in_channels, target);
    for (int c = 0; c < shape.in_channels; c += length)
      for (int tap = 0; tap < taps; tap++)
        blocks.push_back({segment(tap, c, std::min(length, shape.in_channels - c))});
    return blocks;
  }
  const int total = taps * shape.in_channels, length = block_length(total, target);
  for (int from = 0; from < total; from += length) {
    blocks.emplace_back();
    for (int k = from, end = std::min(total, from + length); k < end;) {
      const int channel = k % shape.in_channels;
      const int count = std::min(end - k, shape.in_channels - channel);
      blocks.back().push_back(segment(k / shape.in_channels, channel, count));
      k += count;
    }
  }
  return blocks;
}

Stream pack_stream(const ConvShape& shape, const float* weight, int group, int lanes,
                   const std::vector<Segment>& segments, int first_row, int groups) {
  const int taps = shape.kernel * shape.kernel, patterns = 1 << group;
  const ptrdiff_t row_length = static_cast<ptrdiff_t>(shape.in_channels) * taps;
  std::vector<ptrdiff_t> offsets;  // of each column within a row of weights
  for (const Segment& s : segments) {
    const int tap = (s.dy + shape.padding_before) * shape.kernel + s.dx + shape.padding_before;
    for (int c = 0; c < s.count; c++)
      offsets.push_back(static_cast<ptrdiff_t>(s.channel + c) * taps + tap);
  }
  Stream out;
  out.counts.assign(static_cast<size_t>(groups) * (patterns - 1), 0);
  std::vector<int> pattern(offsets.size());
  std::vector<int> start(patterns + 1);
  std::vector<int> order(offsets.size());
  for (int g = 0; g < groups; g++) {
    const int row = first_row + g * group;
    const int rows = std::min(group, shape.out_channels - row);
    const float* w = weight + row * row_length;
    std::fill(start.begin(), start.end(), 0);
    for (size_t k = 0; k < offsets.size(); k++) {
      int bits = 0;
      for (int r = 0; r < rows; r++) bits |= (w[r * row_length + offsets[k]] != 0) << r;
      pattern[k] = bits;
      start[bits + 1]++;
    }
    for (int p = 1; p < patterns; p++) out.counts[g * (patterns - 1) + p - 1] = start[p + 1];
    for (int p = 0; p < patterns; p++) start[p + 1] += start[p];
    for (size_t k = 0; k < offsets.size(); k++) order[start[pattern[k]]++] = static_cast<int>(k);
    for (int k : order) {
      if (!pattern[k]) continue;
      out.index.push_back(static_cast<uint16_t>(k * kVectors * lanes * sizeof(float) / 8));
      for (int r = 0; r < rows; r++)
        if (pattern[k] >> r & 1) out.values.push_back(w[r * row_length + offsets[k]]);
    }
  }
  out.index.shrink_to_fit();
  out.values.shrink_to_fit();
  return out;
}

}  // namespace

PackedConv pack_conv(const Kernels& kernels, const ConvShape& shape, const float* weight,
                     const float* bias, bool split_taps) {
  const int group = choose_group(kernels);
  const int target = kPanelBytes / (kVectors * kernels.lanes * static_cast<int>(sizeof(float)));
  PackedConv conv{shape.in_channels, shape.out_channels, shape.kernel, shape.stride, group,
                  0, divide_up(shape.out_channels, group), 0, shape.relu, 0, {}, {}, {}};
  conv.chunks = std::max(1, (conv.groups + kChunkGroups / 2) / kChunkGroups);
  conv.chunk_groups = divide_up(conv.groups, conv.chunks);
  conv.chunks = divide_up(conv.groups, conv.chunk_groups);
  conv.bias.assign(static_cast<size_t>(conv.groups) * group, 0.0f);
  if (bias) std::copy(bias, bias + shape.out_channels, conv.bias.begin());
  conv.segments = cut_blocks(shape, target, split_taps);
  for (const auto& segments : conv.segments) {
    auto& streams = conv.streams.emplace_back();
    for (int chunk = 0; chunk < conv.chunks; chunk++) {
      const int first = chunk * conv.chunk_groups;
      streams.push_back(pack_stream(shape, weight, group, kernels.lanes, segments, first * group,
                                    std::min(conv.chunk_groups, conv.groups - first)));
      conv.nonzero += static_cast<int64_t>(streams.back().values.size());
    }
  }
  return conv;
}

}  // namespace sparsedet
