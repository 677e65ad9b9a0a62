// Boxes: decoding and non-maximum suppression. Plain scalar code: a few milliseconds an image.
//
// Boxes are xyxy in network input pixels, deltas are (dx, dy, dw, dh).
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace sparsedet {

using Box = std::array<float, 4>;

struct Detection {
  int label;  // 1..num_classes
  float score;
  Box box;
};

inline float sigmoid(float x) {
  return 1.0f / (1.0f + std::exp(-x));
}

inline Box clipped(const Box& box, float height, float width) {
  return {std::clamp(box[0], 0.0f, width), std::clamp(box[1], 0.0f, height),
          std::clamp(box[2], 0.0f, width), std::clamp(box[3], 0.0f, height)};
}

// Where the cells of one level lie in the network input.
struct Grid {
  int x, y;  // pixels between two cells

  // stride: pixels between two cells on both axes; 0: those of the network input over those of the
  // map.
  Grid(int stride, int image_height, int image_width, int height, int width)
      : x(stride ? stride : image_width / width), y(stride ? stride : image_height / height) {}
};

// The anchors of one level.
struct AnchorLevel {
  std::vector<Box> cell_anchors;  // of the cell at the origin
  int stride;                     // see Grid
};

inline Box shifted(const Box& box, float x, float y) {
  return {box[0] + x, box[1] + y, box[2] + x, box[3] + y};
}

// The box that deltas make of a box. weights: divisors of the deltas; clamp: largest dw and dh.
inline Box decode_unclipped(const float* d, const Box& box, const Box& weights, float clamp) {
  const float w = box[2] - box[0], h = box[3] - box[1];
  const float cx = box[0] + 0.5f * w, cy = box[1] + 0.5f * h;
  const float x = d[0] / weights[0] * w + cx, y = d[1] / weights[1] * h + cy;
  const float half_w = 0.5f * (std::exp(std::min(d[2] / weights[2], clamp)) * w);
  const float half_h = 0.5f * (std::exp(std::min(d[3] / weights[3], clamp)) * h);
  return {x - half_w, y - half_h, x + half_w, y + half_h};
}

// The same, clipped to height and width.
inline Box decode(const float* d, const Box& box, const Box& weights, float clamp, float height,
                  float width) {
  return clipped(decode_unclipped(d, box, weights, clamp), height, width);
}

// Appends the seven numbers of a detection: image 0, label, score, the box in fractions of the
// network input's size.
inline void append_row(const Detection& d, int height, int width, std::vector<float>& rows) {
  const auto h = static_cast<float>(height), w = static_cast<float>(width);
  rows.insert(rows.end(), {0.0f, static_cast<float>(d.label), d.score, d.box[0] / w, d.box[1] / h,
                           d.box[2] / w, d.box[3] / h});
}

inline bool at_least(const Box& box, float size) {
  return box[2] - box[0] >= size && box[3] - box[1] >= size;
}

// Greedy non-maximum suppression against the boxes kept so far.
class Suppressor {
 public:
  // extra: pixels that a box's area extends beyond its right and lower side.
  explicit Suppressor(float threshold, float extra = 0) : threshold_(threshold), extra_(extra) {}

  // Keeps the box and returns true unless it overlaps a kept one by more than the threshold.
  bool keep(Box b) {
    b[2] += extra_;
    b[3] += extra_;
    const float area = (b[2] - b[0]) * (b[3] - b[1]);
    // By whole blocks without a branch, and an int for the result: compilers turn this into vector
    // instructions.
    for (const Block& k : blocks_) {
      int overlaps = 0;
      for (size_t i = 0; i < kBlock; i++) {
        const float w = std::min(b[2], k.x1[i]) - std::max(b[0], k.x0[i]);
        const float h = std::min(b[3], k.y1[i]) - std::max(b[1], k.y0[i]);
        const float overlap = std::max(w, 0.0f) * std::max(h, 0.0f);
        overlaps |= overlap / (area + k.area[i] - overlap) > threshold_;
      }
      if (overlaps) return false;
    }
    const size_t i = kept_++ % kBlock;
    if (i == 0) blocks_.emplace_back();
    Block& to = blocks_.back();
    to.x0[i] = b[0];
    to.y0[i] = b[1];
    to.x1[i] = b[2];
    to.y1[i] = b[3];
    to.area[i] = area;
    return true;
  }

 private:
  static constexpr size_t kBlock = 16;
  // Boxes that are kept; those that are not there yet overlap none.
  struct Block {
    float x0[kBlock], y0[kBlock], x1[kBlock], y1[kBlock], area[kBlock] = {};
    Block() {
      std::fill_n(x0, kBlock, 0.0f);
      std::fill_n(y0, kBlock, 0.0f);
      std::fill_n(x1, kBlock, -INFINITY);
      std::fill_n(y1, kBlock, -INFINITY);
    }
  };

  const float threshold_, extra_;
  size_t kept_ = 0;
  std::vector<Block> blocks_;
};

}  // namespace sparsedet
