// A convolution ready to run by the sparse kernels, or by those of a matrix unit: weights in one of
// the layouts of kernels.h.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "algorithms/weights.h"
#include "kernels/elements.h"
#include "kernels/kernels.h"

namespace sparsedet {

// Version of the packed bytes. Raise it with any change to them, also of the cost model that
// decides how a layer is packed: a cache written by an older program is then no longer read.
constexpr int kPackVersion = 3;

// A convolution without its weights.
struct ConvShape {
  int in_channels, out_channels;
  int kernel_height, kernel_width, stride;
  int padding_top, padding_left;  // bottom and right follow from the size of the output
  Activation activation = Activation::none;
  bool residual_last = false;  // the tensor that is added is added after the activation
  int dilation = 1;
  int groups = 1;  // 1, or as many as channels: depthwise
  ElementType in_type = ElementType::float32, out_type = ElementType::float32;
  // int8: quantization of input, output and residual.
  Quantization in_quantization = {}, out_quantization = {}, residual_quantization = {};

  int taps() const { return kernel_height * kernel_width; }
  bool pointwise() const { return taps() == 1 && stride == 1; }
  bool depthwise() const { return groups > 1; }
  // Input channels that an output channel reads.
  int channels_read() const { return in_channels / groups; }
  int64_t weights() const { return int64_t{out_channels} * channels_read() * taps(); }
};

// Source of the columns of a block: elements [channel, channel + count) at one filter tap.
struct Segment {
  int dy, dx;  // tap times dilation, padding subtracted; dx in elements
  int channel, count;
};

// The packed weights of one chunk of row tiles for one block of columns. For a matrix unit they are
// values alone.
struct Stream {
  std::span<const uint16_t> index, counts;
  std::span<const float> values;
};

// The layouts of kernels.h.
enum class PackedLayout { row_masks, rowwise, matrix };

// Columns are cut into blocks whose panel fits into the first-level cache, row tiles into chunks
// whose loops over row masks fit the branch predictor.
struct PackedConv {
  ConvShape shape;
  PackedLayout layout;
  int tile_rows;        // R
  int chunk_row_tiles;  // row tiles of a chunk; the last chunk may have fewer
  int row_tiles, chunks;
  std::vector<float> bias;   // [row_tiles * R], zero for padding rows
  std::vector<float> scale;  // int8: as `bias`, see SparseArgs
  float residual_scale = 0;  // int8, as the next two: see SparseArgs
  float out_scale = 0, out_zero = 0;
  std::vector<std::vector<Segment>> segments;  // [block]
  std::vector<std::vector<Stream>> streams;    // [block][chunk], into `packed`
  // The bytes that the streams point into: all counts, then all indices, then all values, each block
  // by block.
  std::span<const std::byte> packed;
  std::shared_ptr<const void> owner;  // keeps `packed` alive
  int64_t split = 0;                  // int8: packed weights that occur twice, in two parts

  // Output channel of a packed row; in bfloat16, row tiles of even and of odd channels alternate.
  int channel(int row) const {
    if (shape.out_type != ElementType::bfloat16) return row;
    const int tile = row / tile_rows;
    return 2 * (tile / 2 * tile_rows + row % tile_rows) + tile % 2;
  }
  // First row of the output that a chunk writes, in elements.
  int out_row(int chunk) const {
    const int row = chunk * chunk_row_tiles * tile_rows;
    return row / channels_per_element(shape.out_type);
  }
  // Counts of a row tile and block.
  int counts() const { return layout == PackedLayout::rowwise ? 2 : (1 << tile_rows) - 1; }
  int columns(size_t block) const {
    int n = 0;
    for (const Segment& s : segments[block])
      n += s.count;
    return n;
  }
  // Bytes of weights and biases.
  size_t bytes() const { return packed.size() + bias.size() * sizeof(float); }
};

// bias: [out], or null for none. split_taps: no block spans two taps, so that the columns of a
// block are consecutive channels (the layout of RoIs then needs no panel). dense: keep the zeros,
// as one long loop over the full row mask without a branch to predict. layout: not that of the matrix
// unit; rowwise is for float32 on maps. int8: the weights of each
// output channel are rounded to multiples of 1/127 of its largest one. The result is the same for
// any pool. Throws std::invalid_argument if mask, values and shape do not fit each other.
PackedConv pack_conv(const Kernels& kernels, const ConvShape& shape, const Weights& weights,
                     const float* bias, bool split_taps, bool dense = false, Packer packer = {},
                     PackedLayout layout = PackedLayout::row_masks);

// The same convolution from the bytes of an earlier PackedConv::packed. They are not trusted:
// throws std::invalid_argument if a kernel could read out of bounds. Takes the bytes of this
// convolution from the beginning of `packed` and leaves the rest there.
PackedConv unpack_conv(const Kernels& kernels, const ConvShape& shape,
                       std::span<const std::byte>& packed, std::shared_ptr<const void> owner,
                       const float* bias, bool split_taps,
                       PackedLayout layout = PackedLayout::row_masks);

// Weight elements of a convolution that are not zero.
int64_t nonzero_elements(const PackedConv& conv);

// Checksum of an 8-byte-aligned buffer, independent of the number of threads. Detects corruption;
// not cryptographic.
uint64_t checksum(std::span<const std::byte> bytes, Pool& pool);

}  // namespace sparsedet
