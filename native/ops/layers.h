// Layers on the two layouts of activations, run by a pool of threads.
//
// FeatureMap: one image, pixels as lanes. Each row of a channel starts with a margin of zeros, as
// long as the padding of its readers and at least L. Filter taps to the left of a row read them, and
// taps to the right of a row read those of the next row.
//
//   y = -border .. height-1+border (border rows are zero)
//     channel 0: | margin zeros | width pixels, rounded up to L (the excess is zero) |
//     channel 1: | margin zeros | ...
//
// Rois: feature maps of RoIs, in blocks of lanes = kVectors * L RoIs, RoIs as lanes. Every tap is
// aligned, so that nothing is packed or padded.
//
//   [block][y][x][channel][lanes]
#pragma once
#include <cstddef>
#include <vector>

#include "algorithms/pack.h"
#include "kernels/kernels.h"
#include "runtime/threads.h"

namespace sparsedet {

// Both hold packed elements (kernels.h). The width of a feature map counts elements as well: half
// the pixels, rounded up, for ElementType::pixels.
struct FeatureMap {
  float* data = nullptr;
  int channels = 0, height = 0, width = 0, border = 0, lanes = 0;
  ElementType type = ElementType::float32;
  Quantization quantization = {};  // int8
  int padding = 0;                 // zeros that its readers need to the left or right of a row

  int elements() const { return element_count(type, channels); }

  // Zeros before each row of a channel, in whole vectors.
  int margin() const { return padding > lanes ? divide_up(padding, lanes) * lanes : lanes; }
  // Floats between two elements (channels) of one row.
  ptrdiff_t stride() const { return margin() + divide_up(width, lanes) * lanes; }
  ptrdiff_t row() const { return elements() * stride(); }
  // Floats to allocate; loads may reach 4 vectors past the last row.
  size_t size() const { return (height + 2 * border) * row() + 4 * lanes; }
  float* at(int y, int c, int x) const {
    return data + (y + border) * row() + c * stride() + margin() + x;
  }
};

struct Rois {
  float* data = nullptr;
  int blocks = 0, channels = 0, height = 0, width = 0, lanes = 0;
  ElementType type = ElementType::float32;
  Quantization quantization = {};  // int8

  int elements() const { return element_count(type, channels); }
  size_t size() const { return static_cast<size_t>(blocks) * height * width * elements() * lanes; }
  float* at(int block, int y, int x, int c) const {
    return data +
           (((static_cast<ptrdiff_t>(block) * height + y) * width + x) * elements() + c) * lanes;
  }
};

// Memory of each worker, for a panel and the partial sums of one unit of work.
class Scratch {
 public:
  explicit Scratch(int workers) : buffers_(workers) {}
  // At least `floats` floats for a worker, aligned to 64 bytes; grows, never shrinks.
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

// Sets the border of a feature map to zero; the layers leave it so.
void clear_border(Context& context, const FeatureMap& map);

// (pixel - mean) / std of BGR pixels [height][width][3], as float32 or as pairs of pixels.
template <class T>
void normalise(Context& context, const T* pixels, int width, const float mean[3],
               const float std[3], const FeatureMap& out);

void conv_map(Context& context, const PackedConv& conv, const FeatureMap& in,
              const FeatureMap* residual, const FeatureMap& out);

// 3x3 max pooling of stride 2, within one type or from float32 to int8. The input is not negative,
// so that zero padding changes nothing.
void pool_map(Context& context, const FeatureMap& in, int padding_before, const FeatureMap& out);

// stride: used instead of conv.stride. count: RoIs in all blocks.
void conv_rois(Context& context, const PackedConv& conv, int stride, const Rois& in,
               const Rois* residual, const Rois& out, int count);

// A 3x3 convolution of stride 1 and padding 1 by Winograd's F(4x4, 3x3), in float32. memory:
// winograd_floats() floats, aligned.
size_t winograd_floats(const Winograd& conv, const Rois& out);
void winograd_rois(Context& context, const Winograd& conv, const Rois& in, const Rois& out,
                   int count, float* memory);

// Mean over the feature map of each RoI, as float32 [block][1][1][channel][lanes].
void mean_rois(Context& context, const Rois& in, const Rois& out);

// Elements rounded up to whole vectors.
inline int pitch(int elements, int lanes) {
  return divide_up(elements, lanes) * lanes;
}

// Floats of one cell in the copy that RoIAlign reads: the map's elements, rounded up; or, where
// RoIAlign makes int8 of a float32 map, the channels of whole output elements.
inline int cell_pitch(const FeatureMap& in, ElementType roi_type) {
  return pitch(in.elements(), roi_type == ElementType::int8 && in.type == ElementType::float32
                                  ? 4 * in.lanes
                                  : in.lanes);
}

// Copies a feature map to [height][width][cell_pitch], for RoIs of type `roi_type`.
void transpose_map(Context& context, const FeatureMap& in, ElementType roi_type, float* out);

// Where RoIAlign samples a box, as ModelConfig.roi_sampling: "aligned" with the half-pixel shift,
// or from corner to corner.
enum class RoiSampling { aligned, corners };

// Fields are named as in Python's ModelConfig, which describes them.
struct RoiParams {
  float roi_scale;         // map cells for each network input pixel
  int roi_size;            // bins along each axis
  int roi_sampling_ratio;  // samples of a bin along each axis; 0: one for each cell, rounded up
  int roi_step;            // computes bins 0, roi_step, 2 * roi_step ...
  RoiSampling roi_sampling;
};

// RoIAlign of boxes [count][4] (xyxy, network input pixels). copy: the `map`, made by
// transpose_map. bias: in the form of RoiArgs.
void roi_align(Context& context, const RoiParams& params, const FeatureMap& map, const float* copy,
               const float* boxes, int count, const float* bias, bool relu, const Rois& out);

}  // namespace sparsedet
