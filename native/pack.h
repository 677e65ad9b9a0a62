// Sparse weights -> the chosen kernel's layout (drawn in kernels.h).
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace sparsedet {

enum class Type { float32, bfloat16 };

// Words a pixel: two bfloat16 channels share one (kernels.h).
inline int words_of(Type type, int channels) {
  return type == Type::bfloat16 ? (channels + 1) / 2 : channels;
}

// Where the columns of a block come from: words [channel, channel + count) at one filter tap.
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
  Type in, out;      // bfloat16 sums may leave as float32, not the other way round
  int group;         // G
  int chunk_groups;  // groups a chunk; the last chunk may have fewer
  int groups, chunks;
  bool relu;
  std::vector<float> bias;                     // [groups * G], zero for rows that do not exist
  std::vector<std::vector<Segment>> segments;  // [block]
  std::vector<std::vector<Stream>> streams;    // [block][chunk]

  // Output channel of a packed row; in words, even and odd channels alternate by groups.
  int channel(int row) const {
    if (out == Type::float32) return row;
    const int g = row / group;
    return 2 * (g / 2 * group + row % group) + g % 2;
  }
  // First row of `out` that a chunk writes, in words.
  int out_row(int chunk) const {
    const int row = chunk * chunk_groups * group;
    return out == Type::float32 ? row : row / 2;
  }
  int columns(size_t block) const {
    int n = 0;
    for (const Segment& s : segments[block]) n += s.count;
    return n;
  }
};

struct ConvShape {
  int in_channels, out_channels, kernel, stride, padding_before;
  bool relu;
  Type in = Type::float32, out = Type::float32;
};

// weight: [out][in][k][k]; bias: [out] or null for none. With `split_taps` no block spans two
// taps, so that a block's columns are consecutive channels (the head's layout needs no panel).
// With `dense` zeros are kept: one long pattern of all rows, without a branch to guess.
PackedConv pack_conv(const Kernels& kernels, const ConvShape& shape, const float* weight,
                     const float* bias, bool split_taps, bool dense = false);

// Winograd's F(4x4, 3x3): tiles of 4x4 outputs from 6x6 inputs, transformed to 36 points; at each
// point a dense product over channels, a quarter of the direct multiplications in all. What is
// zero in the filter is not zero there. Lavin and Gray, arXiv 1509.09308.
constexpr int kTile = 4, kTileInput = 6, kPoints = 36;

struct Winograd {
  std::vector<PackedConv> points;  // 1x1 convolutions; empty: not used
  std::vector<float> bias;         // [out_channels]
  bool relu = false;
  int in_channels() const { return points[0].in_channels; }
  int out_channels() const { return points[0].out_channels; }
};

// weight: [out][in][3][3]; bias: [out] or null for none.
Winograd pack_winograd(const Kernels& kernels, const ConvShape& shape, const float* weight,
                       const float* bias);

}  // namespace sparsedet
