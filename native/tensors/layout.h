// The two layouts of activations, both of packed elements (kernels.h).
//
// FeatureMap: one image, pixels as lanes. Each row of a channel starts with a margin of zeros, as
// long as the padding of its readers and at least L. Filter taps to the left of a row read them, and
// taps to the right of a row read those of the next row.
//
//   y = -border .. height-1+border (border rows are zero)
//     channel 0: | margin zeros | width pixels, rounded up to L (the excess is zero) |
//     channel 1: | margin zeros | ...
//
// Where no reader relies on these zeros, anything may stand there instead (FeatureMap::beside).
//
// Rois: feature maps of RoIs, in blocks of lanes = kVectors * L RoIs, RoIs as lanes. Every tap is
// aligned, so that nothing is packed or padded.
//
//   [block][y][x][channel][lanes]
//
// A view of some channels of another tensor has the rows (FeatureMap) or cells (Rois) of the whole
// tensor, `of_elements` elements long: splitting and joining channels costs no time.
#pragma once
#include <algorithm>
#include <cstddef>
#include <vector>

#include "kernels/elements.h"
#include "kernels/kernels.h"
#include "runtime/threads.h"

namespace sparsedet {

// The width of a feature map counts elements: half the pixels, rounded up, for
// ElementType::pixels.
struct FeatureMap {
  float* data = nullptr;
  int channels = 0, height = 0, width = 0, border = 0, lanes = 0;
  ElementType type = ElementType::float32;
  Quantization quantization = {};  // int8
  int padding = 0;                 // zeros that its readers need to the left or right of a row
  int of_elements = 0;             // a view: elements of the whole tensor; 0: it is no view
  bool beside = true;              // zeros stand around its pixels; else anything

  int elements() const { return element_count(type, channels); }
  // The element whose channels are zero: what borders and margins hold.
  float zero() const { return zero_element(type, quantization); }

  // Zeros before each row of a channel, in whole vectors.
  int margin() const { return padding > lanes ? divide_up(padding, lanes) * lanes : lanes; }
  // Floats between two elements (channels) of one row.
  ptrdiff_t stride() const { return margin() + divide_up(width, lanes) * lanes; }
  ptrdiff_t row() const { return (of_elements ? of_elements : elements()) * stride(); }
  // Floats to allocate; loads may reach 4 vectors past the last row.
  size_t size() const { return (height + 2 * border) * row() + 4 * lanes; }
  float* at(int y, int c, int x) const {
    return data + (y + border) * row() + c * stride() + margin() + x;
  }
  // Channels [first, first + count); `first` is a multiple of the channels of an element.
  FeatureMap view(int first, int count) const {
    FeatureMap part = *this;
    part.of_elements = of_elements ? of_elements : elements();
    part.data += first / channels_per_element(type) * stride();
    part.channels = count;
    return part;
  }
};

struct Rois {
  float* data = nullptr;
  int blocks = 0, channels = 0, height = 0, width = 0, lanes = 0;
  ElementType type = ElementType::float32;
  Quantization quantization = {};  // int8
  int of_elements = 0;             // a view: elements of the whole tensor; 0: it is no view

  int elements() const { return element_count(type, channels); }
  // Elements of a cell in memory.
  int cell() const { return of_elements ? of_elements : elements(); }
  size_t size() const { return static_cast<size_t>(blocks) * height * width * cell() * lanes; }
  float* at(int block, int y, int x, int c) const {
    return data + (((static_cast<ptrdiff_t>(block) * height + y) * width + x) * cell() + c) * lanes;
  }
  // As FeatureMap::view.
  Rois view(int first, int count) const {
    Rois part = *this;
    part.of_elements = cell();
    part.data += static_cast<ptrdiff_t>(first / channels_per_element(type)) * lanes;
    part.channels = count;
    return part;
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

// What every operation needs to run.
struct Context {
  const Kernels& kernels;
  Pool& pool;
  Scratch& scratch;
};

// The kernels of bfloat16 or int8; null for float32.
const LowPrecisionKernels* low_precision_kernels(const Context& context, ElementType type);

// Sets the border of a feature map to zero (of int8: to its zero point), and what follows the pixels of a row; the operations
// leave it so.
void clear_border(Context& context, const FeatureMap& map);

// Sets what follows the pixels of a row of an element to zero.
inline void clear_excess(const FeatureMap& map, int y, int element) {
  const auto pixels = static_cast<ptrdiff_t>(map.stride()) - map.margin();
  std::fill(map.at(y, element, map.width), map.at(y, element, 0) + pixels, map.zero());
}

// Elements rounded up to whole vectors.
inline int pitch(int elements, int lanes) {
  return divide_up(elements, lanes) * lanes;
}

// ---- between the layouts and plain row-major arrays; not fast

// [channels][height][width] of `width` pixels -> feature map.
void fill_map(const float* from, int width, const FeatureMap& to);
void read_map(const FeatureMap& from, int width, float* out);
// [count][channels][height][width] -> RoIs. Lanes beyond `count` stay as they are.
void fill_rois(const float* from, int count, const Rois& to);
void read_rois(const Rois& from, int count, float* out);

}  // namespace sparsedet
