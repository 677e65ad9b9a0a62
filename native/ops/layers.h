// Layers over the two activation layouts, spread over a pool of threads.
//
// Map: one image, pixels as lanes. A row of one channel starts with L zeros, so that filter
// taps to the left read zeros, and so does its right end: the next row's zeros.
//
//   y = -border .. height-1+border (border rows are zero)
//     channel 0: | L zeros | width pixels, rounded up to L (the excess is zero) |
//     channel 1: | L zeros | ...
//
// Regions: blocks of lanes = kVectors * L regions, regions as lanes; every tap is aligned and
// nothing is ever packed or padded.
//
//   [block][y][x][channel][lanes]
#pragma once
#include <cstddef>
#include <vector>

#include "algorithms/pack.h"
#include "kernels/kernels.h"
#include "runtime/threads.h"

namespace sparsedet {

// Both hold words (kernels.h): float32 channels, pairs of bfloat16 or four of int8 ones. A map's
// width counts words too: half the pixels, rounded up, where a word is two of them.
struct Map {
  float* data = nullptr;
  int channels = 0, height = 0, width = 0, border = 0, lanes = 0;
  Type type = Type::float32;
  Quantised q = {};  // int8

  int words() const { return words_of(type, channels); }

  // Floats between two words of a row.
  ptrdiff_t stride() const { return lanes + (width + lanes - 1) / lanes * lanes; }
  ptrdiff_t row() const { return words() * stride(); }
  // Floats to allocate; loads may run up to 4 vectors past the last row.
  size_t size() const { return (height + 2 * border) * row() + 4 * lanes; }
  float* at(int y, int c, int x) const {
    return data + (y + border) * row() + c * stride() + lanes + x;
  }
};

struct Regions {
  float* data = nullptr;
  int blocks = 0, channels = 0, height = 0, width = 0, lanes = 0;
  Type type = Type::float32;
  Quantised q = {};  // int8

  int words() const { return words_of(type, channels); }
  size_t size() const { return static_cast<size_t>(blocks) * height * width * words() * lanes; }
  float* at(int block, int y, int x, int c) const {
    return data +
           (((static_cast<ptrdiff_t>(block) * height + y) * width + x) * words() + c) * lanes;
  }
};

// Memory of each worker: a panel and the partial sums of a unit of work.
class Scratch {
 public:
  explicit Scratch(int workers) : buffers_(workers) {}
  // At least `floats` floats for that worker, aligned to 64 bytes; grows, never shrinks.
  float* get(int worker, size_t floats);
  size_t bytes() const {
    size_t n = 0;
    for (const auto& buffer : buffers_)
      n += buffer.capacity() * sizeof(float);
    return n;
  }

 private:
  std::vector<std::vector<float>> buffers_;
};

struct Context {
  const Kernels& kernels;
  Pool& pool;
  Scratch& scratch;
};

// Zero a map's border: what every layer before has to leave zero.
void clear_border(Context& context, const Map& map);

// BGR pixels [height][width][3] -> (pixel - mean) / std, float32 or pairs of pixels.
template <class T>
void normalise(Context& context, const T* pixels, int width, const float mean[3],
               const float std[3], const Map& out);

void conv_map(Context& context, const PackedConv& conv, const Map& in, const Map* residual,
              const Map& out);

// Max pooling 3x3, stride 2, into the same type or from float32 to int8; the input is not negative,
// so zero padding is as good as none.
void pool_map(Context& context, const Map& in, int padding_before, const Map& out);

// stride: overrides the packed one. regions: how many exist, counted over all blocks.
void conv_regions(Context& context, const PackedConv& conv, int stride, const Regions& in,
                  const Regions* residual, const Regions& out, int regions);

// A 3x3 convolution of stride 1 and padding 1 by Winograd's F(4x4, 3x3), float32. `memory` holds
// winograd_floats, aligned.
size_t winograd_floats(const Winograd& conv, const Regions& out);
void winograd_regions(Context& context, const Winograd& conv, const Regions& in, const Regions& out,
                      int regions, float* memory);

// Mean over the map of every region, float32: [block][1][1][channel][lanes].
void mean_regions(Context& context, const Regions& in, const Regions& out);

// Words rounded up to whole vectors.
inline int pitch(int words, int lanes) {
  return (words + lanes - 1) / lanes * lanes;
}

// Floats a cell of the copy that RoIAlign reads: the map's words, or what int8 is made of.
inline int cell_pitch(const Map& in, Type regions) {
  return pitch(in.words(),
               regions == Type::int8 && in.type == Type::float32 ? 4 * in.lanes : in.lanes);
}

// [height][width][cell_pitch] copy of a map's words, for regions of that type.
void transpose_map(Context& context, const Map& in, Type regions, float* out);

struct RoiParams {
  float scale;         // map cells a network input pixel
  int size;            // bins an axis
  int sampling_ratio;  // samples a bin and axis; 0: one a cell, rounded up
  int step;            // bins 0, step, 2 * step ... are computed
  bool corners;        // samples lie from corner to corner of a box, see config.py's roi_sampling
};

// RoIAlign with the half-pixel shift ("aligned") of boxes [count][4] (xyxy, network input pixels), or of
// the boxes that make it sample from corner to corner.
// copy: of `map`, by transpose_map. bias: as the kernel takes it.
void roi_align(Context& context, const RoiParams& params, const Map& map, const float* copy,
               const float* boxes, int count, const float* bias, bool relu, const Regions& out);

}  // namespace sparsedet
