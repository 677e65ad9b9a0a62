// Sparse weights -> the chosen kernel's layout (drawn in kernels.h).
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/int8.h"
#include "kernels/kernels.h"
#include "runtime/memory.h"
#include "runtime/threads.h"

namespace sparsedet {

// What a word holds (kernels.h). In `pixels`, which the stem reads in bfloat16, it is two
// neighbouring pixels 2x and 2x + 1 of one channel: three channels would not make pairs.
enum class Type { float32, bfloat16, pixels, int8 };

// Channels that share a word.
inline int channels_a_word(Type type) {
  return type == Type::bfloat16 ? 2 : type == Type::int8 ? 4 : 1;
}

// Words a pixel (of `pixels`: two of them).
inline int words_of(Type type, int channels) {
  const int n = channels_a_word(type);
  return (channels + n - 1) / n;
}

// Of the packed bytes and of where they come from: to be raised with any change of them, also of
// the cost model, so that what an older program packed is not taken for it.
constexpr int kPackVersion = 2;

// Where the columns of a block come from: words [channel, channel + count) at one filter tap.
struct Segment {
  int dy, dx;  // tap, padding subtracted; dx in words
  int channel, count;
};

// The packed weights of one chunk of groups for one block of columns.
struct Stream {
  std::span<const uint16_t> index, counts;
  std::span<const float> values;
};

// A convolution ready to run. Columns are cut into blocks whose panel fits the first-level
// cache, groups of rows into chunks whose pattern loops fit the branch predictor.
struct PackedConv {
  int in_channels, out_channels, kernel, stride;
  Type in, out;      // sums of words may leave as float32, not the other way round
  int group;         // G
  int chunk_groups;  // groups a chunk; the last chunk may have fewer
  int groups, chunks;
  bool relu;
  std::vector<float> bias;                     // [groups * G], zero for rows that do not exist
  std::vector<float> scale;                    // int8: the same, see SparseArgs
  float residual_scale = 0;                    // int8
  std::vector<std::vector<Segment>> segments;  // [block]
  std::vector<std::vector<Stream>> streams;    // [block][chunk], into `packed`
  // What the streams point into: the counts of all of them, the indices of all, the values of all.
  std::span<const std::byte> packed;
  std::shared_ptr<const void> owner;  // of `packed`

  // Output channel of a packed row; in bfloat16, even and odd channels alternate by groups.
  int channel(int row) const {
    if (out != Type::bfloat16) return row;
    const int g = row / group;
    return 2 * (g / 2 * group + row % group) + g % 2;
  }
  // First row of `out` that a chunk writes, in words.
  int out_row(int chunk) const {
    const int row = chunk * chunk_groups * group;
    return row / channels_a_word(out);
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
  Type in = Type::float32, out = Type::float32;
  // int8: how input, output and residual are to be read; the input has no negative values.
  Quantised in_q = {}, out_q = {}, residual_q = {};
};

// The weights of a convolution, [out][in][k][k], as an array or as the model file stores them
// (docs/format.md): a bit for each, and the values whose bit is set.
struct Weights {
  Weights(const float* dense) : dense(dense) {}
  Weights(std::span<const uint8_t> mask, const void* values, size_t count, bool half)
      : mask(mask), values(values), count(count), half(half) {}

  // Those that are not zero, of `size` in all.
  int64_t nonzero(size_t size, Pool& pool) const;

  const float* dense = nullptr;
  std::span<const uint8_t> mask;
  const void* values = nullptr;  // float32, or float16 if `half`
  size_t count = 0;              // of values
  bool half = false;
};

// What packing works in, kept from one convolution to the next: giving memory back and taking it
// again costs more than the packing of a small one.
class PackScratch {
 public:
  template <class T>
  static T* get(std::unique_ptr<T[]>& buffer, size_t& size, size_t wanted) {
    if (wanted > size) {
      buffer.reset();
      buffer.reset(new T[wanted]);  // not cleared, so that pages that are not used cost nothing
      size = wanted;
    }
    return buffer.get();
  }
  uint16_t* index(size_t wanted) { return get(index_, index_size_, wanted); }
  float* values(size_t wanted) { return get(values_, values_size_, wanted); }

 private:
  std::unique_ptr<uint16_t[]> index_;
  std::unique_ptr<float[]> values_;
  size_t index_size_ = 0, values_size_ = 0;
};

// Who packs, and where to. Without a pool or memory: the calling thread, and memory of its own.
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

// bias: [out] or null for none. With `split_taps` no block spans two taps, so that a block's
// columns are consecutive channels (the head's layout needs no panel). With `dense` zeros are
// kept: one long pattern of all rows, without a branch to guess. For int8 each output channel's
// weights are rounded to whole multiples of 1/127 of its largest. The result is the same for any
// pool. Throws std::invalid_argument if mask, values and shape do not fit each other.
PackedConv pack_conv(const Kernels& kernels, const ConvShape& shape, const Weights& weights,
                     const float* bias, bool split_taps, bool dense = false, Packer packer = {});

// The same from the bytes that `packed` had before. They are not trusted: throws
// std::invalid_argument if a kernel could read anything out of bounds by them. The bytes taken
// are at the beginning, the rest is left in `packed`.
PackedConv unpack_conv(const Kernels& kernels, const ConvShape& shape,
                       std::span<const std::byte>& packed, std::shared_ptr<const void> owner,
                       const float* bias, bool split_taps);

// Weight words of a convolution that are not zero.
int64_t nonzero_words(const PackedConv& conv);

// Of bytes, 8-byte aligned; the same for any pool. For damage, not against intent.
uint64_t checksum(std::span<const std::byte> bytes, Pool& pool);

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

// Weights [out][in][3][3]; bias: [out] or null for none; otherwise as above.
Winograd pack_winograd(const Kernels& kernels, const ConvShape& shape, const Weights& weights,
                       const float* bias, Packer packer = {});
Winograd unpack_winograd(const Kernels& kernels, const ConvShape& shape,
                         std::span<const std::byte>& packed, std::shared_ptr<const void> owner,
                         const float* bias);

}  // namespace sparsedet
