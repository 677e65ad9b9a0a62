// An operation of the graph: what its output looks like, what it needs, and how it runs. One file
// of this folder holds one kind; operations.h lists them.
#pragma once
#include <algorithm>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/boxes.h"
#include "tensors/layout.h"

namespace sparsedet {

// What a value is. Operations that make RoIs, or masks of them, run in one loop over blocks of RoIs, all others once an
// image.
//   image  BGR pixels [height][width][3], 0..255: the network input
//   map    a feature map of the image
//   rois   a feature map of each RoI
//   boxes  proposals
//   rows   detections
//   masks  one of each row
enum class Domain { image, map, rois, boxes, rows, masks };

// count: RoIs, boxes, rows or masks, at most. height and width of a RoI or mask do not depend on
// the image.
struct Shape {
  Domain domain;
  int channels = 0, height = 0, width = 0, count = 1;
};

struct Format {
  ElementType type = ElementType::float32;
  Quantization quantization = {};  // int8
};

inline bool equal(const Format& a, const Format& b) {
  return a.type == b.type && a.quantization.scale == b.quantization.scale &&
         a.quantization.zero_point == b.quantization.zero_point;
}

// Zeros (of int8: zero points) that a reader of a feature map needs: rows above and below, pixels beside a row.
// beside: it relies on zeros beside the pixels of a row, up to whole vectors at least. One that does
// not may find anything there.
struct Needs {
  int border = 0, padding = 0;
  bool beside = true;
};

// A value while the graph runs. Memory of maps and RoIs belongs to the memory plan.
struct Value {
  Shape shape;
  Format format;
  FeatureMap map;                             // map
  Rois rois;                                  // rois: the blocks that are in flight
  const void* pixels = nullptr;               // image
  bool float_pixels = false;                  // else they are uint8
  int content_height = 0, content_width = 0;  // image: of what is in its upper left corner
  std::vector<Box> boxes;
  std::vector<Detection> detections;
  // Of RoIs with one cell, where an operation of another domain reads them: [RoIs][channels].
  std::vector<float> table;
  std::vector<float> masks;  // [rows][height][width]
};

// One execution.
struct Step {
  std::span<Value* const> inputs;
  Value& out;
  int first = 0, count = 0;  // RoIs in flight: [first, first + count) of all
  float* scratch = nullptr;
  float* prepared = nullptr;
};

class Operation {
 public:
  virtual ~Operation() = default;

  // Throws std::invalid_argument if the inputs do not fit.
  virtual Shape shape(std::span<const Shape> inputs) const = 0;
  virtual Format format(std::span<const Format> inputs) const = 0;
  virtual Needs needs(std::span<const Shape> /*inputs*/, size_t /*input*/) const { return {}; }
  // Whether the output may take the memory of that input, if both have the same layout and nothing
  // reads it later.
  virtual bool in_place(size_t /*input*/) const { return false; }
  // First channel of the first input, of which the output is a view; -1: it is no view.
  virtual int view() const { return -1; }
  // Whether the output is all inputs, one after the other along the channels: they lie in its
  // memory where that is possible.
  virtual bool joins() const { return false; }
  // Bytes of packed weights and biases.
  virtual size_t weight_bytes() const { return 0; }
  virtual size_t scratch_floats(const Value& /*out*/) const { return 0; }
  // An operation on RoIs that reads feature maps prepares them once, before the loop over RoIs.
  virtual size_t prepared_floats(std::span<Value* const> /*inputs*/) const { return 0; }
  virtual void prepare(Context&, std::span<Value* const> /*inputs*/, float* /*prepared*/) const {}
  virtual void run(Context& context, const Step& step) const = 0;
};

// Throws std::invalid_argument unless there are that many inputs.
inline void expect_count(std::span<const Shape> inputs, size_t least, size_t most) {
  if (inputs.size() < least || inputs.size() > most)
    throw std::invalid_argument("has " + std::to_string(inputs.size()) + " inputs, expected " +
                                std::to_string(least) +
                                (most > least ? ".." + std::to_string(most) : ""));
}

// Throws std::invalid_argument unless the value is of that domain.
inline const Shape& expect(std::span<const Shape> inputs, size_t input, Domain domain) {
  if (input >= inputs.size() || inputs[input].domain != domain)
    throw std::invalid_argument("an input is missing, or of the wrong domain");
  return inputs[input];
}

// The format of an output that is float32 and no tensor. Throws std::invalid_argument unless all
// inputs are float32.
inline Format expect_float32(std::span<const Format> inputs) {
  for (const Format& format : inputs)
    if (format.type != ElementType::float32)
      throw std::invalid_argument("it reads values that are not float32");
  return {};
}

// Rows (or columns) of a window operation's output; 0 if the window does not fit.
inline int output_length(int length, int kernel, int stride, int before, int after,
                         int dilation = 1) {
  const int room = length + before + after - ((kernel - 1) * dilation + 1);
  return room < 0 ? 0 : room / stride + 1;
}

// Number of zero rows that a window operation reads above or below its input.
inline int border_needed(int length, int kernel, int stride, int before, int after,
                         int dilation = 1) {
  const int out = output_length(length, kernel, stride, before, after, dilation);
  const int below = (out - 1) * stride - before + (kernel - 1) * dilation + 1 - length;
  return std::max({before, below, 0});
}

}  // namespace sparsedet
