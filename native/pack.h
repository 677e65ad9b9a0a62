// Sparse weights -> the chosen kernel's layout (drawn in kernels.h).
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace sparsedet {

// Where the columns of a block come from: channels [channel, channel + count) at one filter tap.
struct Segment {
  int dy, dx;  // tap, padding subtracted
  int channel, count;
};

// The packed weights of one chunk of groups for one block of columns.
struct Stream {
  std::vector<uint16_t> index, counts;
  std::vector<float> values;
};

// A convolution ready to run. Columns are cut into blocks whose panel fits the first-level
// cache, groups of rows into chunks whose pattern loops fit the branch predictor.
struct PackedConv {
  int in_channels, out_channels, kernel, stride;
  int group;         // G
  int chunk_groups;  // groups a chunk; the last chunk may have fewer
  int groups, chunks;
  bool relu;
  int64_t nonzero;
  std::vector<float> bias;                     // [groups * G], zero beyond out_channels
  std::vector<std::vector<Segment>> segments;  // [block]
  std::vector<std::vector<Stream>> streams;    // [block][chunk]

  int columns(size_t block) const {
    int n = 0;
    for (const Segment& s : segments[block]) n += s.count;
    return n;
  }
};

struct ConvShape {
  int in_channels, out_channels, kernel, stride, padding_before;
  bool relu;
};

// weight: [out][in][k][k]; bias: [out] or null for none. With `split_taps` no block spans two
// taps, so that a block's columns are consecutive channels (the head's layout needs no panel).
PackedConv pack_conv(const Kernels& kernels, const ConvShape& shape, const float* weight,
                     const float* bias, bool split_taps);

}  // namespace sparsedet
