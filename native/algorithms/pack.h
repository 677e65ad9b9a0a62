// Packs sparse weights into the layout of the chosen kernel (drawn in kernels.h).
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/elements.h"
#include "kernels/kernels.h"
#include "runtime/memory.h"
#include "runtime/threads.h"

namespace sparsedet {

// Version of the packed bytes. Raise it with any change to them, also of the cost model that
// decides how a layer is packed: a cache written by an older program is then no longer read.
constexpr int kPackVersion = 2;

// Source of the columns of a block: elements [channel, channel + count) at one filter tap.
struct Segment {
  int dy, dx;  // tap, padding subtracted; dx in elements
  int channel, count;
};

// The packed weights of one chunk of row tiles for one block of columns.
struct Stream {
  std::span<const uint16_t> index, counts;
  std::span<const float> values;
};

// A convolution ready to run. Columns are cut into blocks whose panel fits into the first-level
// cache, row tiles into chunks whose loops over row masks fit the branch predictor.
struct PackedConv {
  int in_channels, out_channels, kernel, stride;
  ElementType in_type, out_type;  // packed input may give float32, but not the other way round
  int tile_rows;                  // R
  int chunk_row_tiles;            // row tiles of a chunk; the last chunk may have fewer
  int row_tiles, chunks;
  bool relu;
  std::vector<float> bias;                     // [row_tiles * R], zero for padding rows
  std::vector<float> scale;                    // int8: as `bias`, see SparseArgs
  float residual_scale = 0;                    // int8
  std::vector<std::vector<Segment>> segments;  // [block]
  std::vector<std::vector<Stream>> streams;    // [block][chunk], into `packed`
  // The bytes that the streams point into: all counts, then all indices, then all values.
  std::span<const std::byte> packed;
  std::shared_ptr<const void> owner;  // keeps `packed` alive

  // Output channel of a packed row; in bfloat16, row tiles of even and of odd channels alternate.
  int channel(int row) const {
    if (out_type != ElementType::bfloat16) return row;
    const int tile = row / tile_rows;
    return 2 * (tile / 2 * tile_rows + row % tile_rows) + tile % 2;
  }
  // First row of the output that a chunk writes, in elements.
  int out_row(int chunk) const {
    const int row = chunk * chunk_row_tiles * tile_rows;
    return row / channels_per_element(out_type);
  }
  int columns(size_t block) const {
    int n = 0;
    for (const Segment& s : segments[block])
      n += s.count;
    return n;
  }
};

struct ConvShape {
  int in_channels, out_channels, kernel, stride, padding_before;
  bool relu;
  ElementType in_type = ElementType::float32, out_type = ElementType::float32;
  // int8: quantization of input, output and residual; the input has no negative values.
  Quantization in_quantization = {}, out_quantization = {}, residual_quantization = {};
};

// The weights of a convolution, [out][in][k][k]: an array, or the form of the model file
// (docs/format.md), which is one mask bit for each weight and the values whose bit is set.
struct Weights {
  Weights(const float* dense) : dense(dense) {}
  Weights(std::span<const uint8_t> mask, const void* values, size_t count, bool half)
      : mask(mask), values(values), count(count), half(half) {}

  // Number of nonzero weights, of `size` weights in all.
  int64_t nonzero(size_t size, Pool& pool) const;

  const float* dense = nullptr;
  std::span<const uint8_t> mask;
  const void* values = nullptr;  // float32, or float16 if `half`
  size_t count = 0;              // number of values
  bool half = false;
};

// Scratch memory for packing, reused between convolutions: reallocating it would cost more than
// packing a small convolution.
class PackScratch {
 public:
  template <class T>
  static T* get(std::unique_ptr<T[]>& buffer, size_t& size, size_t count) {
    if (count > size) {
      buffer.reset();
      buffer.reset(new T[count]);  // not cleared: untouched pages are never committed
      size = count;
    }
    return buffer.get();
  }
  uint16_t* index(size_t count) { return get(index_, index_size_, count); }
  float* values(size_t count) { return get(values_, values_size_, count); }

 private:
  std::unique_ptr<uint16_t[]> index_;
  std::unique_ptr<float[]> values_;
  size_t index_size_ = 0, values_size_ = 0;
};

// Threads and memory for packing. Defaults: the calling thread, and memory of its own.
struct Packer {
  Pool* pool = nullptr;
  Memory* memory = nullptr;
  PackScratch* scratch = nullptr;

  template <class Body>
  void parallel(int count, const Body& body) const {
    if (pool) return pool->parallel(count, body);
    for (int item = 0; item < count; item++)
      body(item, 0);
  }
};

// bias: [out], or null for none. split_taps: no block spans two taps, so that the columns of a
// block are consecutive channels (the layout of RoIs then needs no panel). dense: keep the zeros,
// as one long loop over the full row mask without a branch to predict. int8: the weights of each
// output channel are rounded to multiples of 1/127 of its largest one. The result is the same for
// any pool. Throws std::invalid_argument if mask, values and shape do not fit each other.
PackedConv pack_conv(const Kernels& kernels, const ConvShape& shape, const Weights& weights,
                     const float* bias, bool split_taps, bool dense = false, Packer packer = {});

// The same convolution from the bytes of an earlier PackedConv::packed. They are not trusted:
// throws std::invalid_argument if a kernel could read out of bounds. Takes the bytes of this
// convolution from the beginning of `packed` and leaves the rest there.
PackedConv unpack_conv(const Kernels& kernels, const ConvShape& shape,
                       std::span<const std::byte>& packed, std::shared_ptr<const void> owner,
                       const float* bias, bool split_taps);

// Weight elements of a convolution that are not zero.
int64_t nonzero_elements(const PackedConv& conv);

// Checksum of an 8-byte-aligned buffer, independent of the number of threads. Detects corruption;
// not cryptographic.
uint64_t checksum(std::span<const std::byte> bytes, Pool& pool);

// Winograd's F(4x4, 3x3): a Winograd tile of 4x4 outputs is computed from 6x6 inputs, transformed
// to 36 points, with a dense product over channels at each point: a quarter of the direct
// multiplications. Zeros of the filter do not stay zero at the points. Source: Lavin and Gray,
// arXiv 1509.09308.
constexpr int kTile = 4, kTileInput = 6, kPoints = 36;

struct Winograd {
  std::vector<PackedConv> points;  // 1x1 convolutions; empty for the other algorithms
  std::vector<float> bias;         // [out_channels]
  bool relu = false;
  int in_channels() const { return points[0].in_channels; }
  int out_channels() const { return points[0].out_channels; }
};

// Weights [out][in][3][3]; otherwise as pack_conv and unpack_conv.
Winograd pack_winograd(const Kernels& kernels, const ConvShape& shape, const Weights& weights,
                       const float* bias, Packer packer = {});
Winograd unpack_winograd(const Kernels& kernels, const ConvShape& shape,
                         std::span<const std::byte>& packed, std::shared_ptr<const void> owner,
                         const float* bias);

}  // namespace sparsedet
