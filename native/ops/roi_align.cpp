#include "ops/roi_align.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace sparsedet {

namespace {

// Floats of one cell in the copy that RoIAlign reads: the map's elements, rounded up; or, where it
// makes int8 of a float32 map, the channels of whole output elements.
int cell_pitch(const FeatureMap& in, ElementType roi_type) {
  return pitch(in.elements(), roi_type == ElementType::int8 && in.type == ElementType::float32
                                  ? 4 * in.lanes
                                  : in.lanes);
}

// Copies a feature map to [height][width][cell_pitch].
void transpose_map(Context& context, const FeatureMap& in, ElementType roi_type, float* out) {
  context.pool.parallel(in.height, [&](int y, int) {
    const ptrdiff_t to = cell_pitch(in, roi_type);
    TransposeArgs a{in.at(y, 0, 0),          in.stride(), in.elements(), in.width,
                    out + y * in.width * to, to};
    context.kernels.transpose(a);
  });
}

// Bilinear interpolation along one axis of one box: the cells and weights of each bin.
struct Axis {
  std::vector<int> start;  // [bins + 1] into the lists below
  std::vector<int32_t> cell;
  std::vector<float> weight;
  int width = 0;  // of the map, for the horizontal axis

  // from, to: a side of the box, in network input pixels.
  void fill_box(float from, float to, const RoiAlignAttributes& a, float scale, int cells) {
    if (a.sampling == RoiSampling::corners)
      scale *= static_cast<float>(cells - 1) / static_cast<float>(cells);
    float low = from * scale, length = to * scale - low;
    if (a.sampling ==
        RoiSampling::corners) {  // the first sample falls on `low`, the last on low + length
      const auto samples = static_cast<float>(a.size * a.sampling_ratio);
      const float step = length / (samples - 1.0f);
      low += 0.5f - 0.5f * step;
      length = step * samples;
    } else if (a.sampling == RoiSampling::legacy) {
      low += 0.5f;
      length = std::max(length, 1.0f);
    }
    fill(low, length, a, cells);
  }

 private:
  void fill(float low, float length, const RoiAlignAttributes& a, int cells) {
    start.clear();
    cell.clear();
    weight.clear();
    const float bin = length / static_cast<float>(a.size);
    const int samples = a.sampling_ratio > 0
                            ? a.sampling_ratio
                            : static_cast<int>(std::ceil(length / static_cast<float>(a.size)));
    for (int b = 0; b < a.size; b += a.step) {
      start.push_back(static_cast<int>(cell.size()));
      for (int s = 0; s < samples; s++) {
        float at = low - 0.5f + static_cast<float>(b) * bin +
                   (static_cast<float>(s) + 0.5f) * bin / static_cast<float>(samples);
        // Samples far outside, and NaN, count as zero.
        if (!(at >= -1.0f && at <= static_cast<float>(cells))) continue;
        at = std::clamp(at, 0.0f, static_cast<float>(cells - 1));
        const int below = static_cast<int>(at);
        const float above = at - static_cast<float>(below);
        add(below, (1.0f - above) / static_cast<float>(samples));
        if (below + 1 < cells) add(below + 1, above / static_cast<float>(samples));
      }
    }
    start.push_back(static_cast<int>(cell.size()));
  }

  // Samples come in ascending order: if the bin has this cell already, it is one of the last two.
  void add(int c, float w) {
    for (int k = static_cast<int>(cell.size()) - 1; k >= start.back(); k--)
      if (cell[k] == c) {
        weight[k] += w;
        return;
      }
    cell.push_back(c);
    weight.push_back(w);
  }
};

size_t cells_of(const FeatureMap& map) {
  return size_t(map.height) * map.width;
}

}  // namespace

RoiAlign::RoiAlign(const Kernels& kernels, const RoiAlignAttributes& attributes,
                   std::vector<float> bias)
    : a_(attributes) {
  if (bias.empty()) return;
  const int channels = static_cast<int>(bias.size());
  const int elements = pitch(element_count(a_.type, channels), kernels.lanes);
  const Quantization q = a_.quantization.value_or(Quantization{});
  bias_.assign(channels_per_element(a_.type) * elements, 0.0f);
  for (int c = 0; c < channels; c++)
    bias_[a_.type == ElementType::bfloat16 ? c / 2 + c % 2 * elements : c] =
        a_.type == ElementType::int8 ? bias[c] / q.scale + static_cast<float>(q.zero_point)
                                     : bias[c];
}

Shape RoiAlign::shape(std::span<const Shape> inputs) const {
  if (inputs.size() != a_.scales.size() + 1 || a_.scales.empty())
    throw std::invalid_argument("RoIAlign needs a scale for each feature map, and boxes");
  const Shape& boxes = inputs.back();
  if (boxes.domain != Domain::boxes && boxes.domain != Domain::rows)
    throw std::invalid_argument("the last input of RoIAlign are boxes");
  for (size_t i = 0; i + 1 < inputs.size(); i++)
    if (expect(inputs, i, Domain::map).channels != inputs[0].channels)
      throw std::invalid_argument("the feature maps of RoIAlign differ in channels");
  const int bins = divide_up(a_.size, a_.step);
  return {Domain::rois, inputs[0].channels, bins, bins, boxes.count};
}

// It interpolates: its values stay in the range of its input.
Format RoiAlign::format(std::span<const Format> inputs) const {
  const Format& map = inputs[0];
  for (const Format& other : inputs.first(inputs.size() - 1))
    if (!equal(other, map))
      throw std::invalid_argument("the feature maps of RoIAlign differ in type");
  if (a_.type != map.type && (map.type != ElementType::float32 || a_.type != ElementType::int8))
    throw std::invalid_argument("RoIAlign keeps the type of its maps, or makes int8 of float32");
  if (map.type == ElementType::int8 && map.quantization.zero_point)
    throw std::invalid_argument("RoIAlign reads int8 values that may be negative");
  if (a_.relu && a_.quantization && a_.quantization->zero_point)
    throw std::invalid_argument("RoIAlign has a ReLU, and values that may be negative");
  return {a_.type, a_.quantization.value_or(map.quantization)};
}

size_t RoiAlign::prepared_floats(std::span<Value* const> inputs) const {
  size_t floats = 0;
  for (const Value* in : inputs.first(inputs.size() - 1))
    floats += cells_of(in->map) * cell_pitch(in->map, a_.type);
  return floats;
}

void RoiAlign::prepare(Context& context, std::span<Value* const> inputs, float* prepared) const {
  for (const Value* in : inputs.first(inputs.size() - 1)) {
    transpose_map(context, in->map, a_.type, prepared);
    prepared += cells_of(in->map) * cell_pitch(in->map, a_.type);
  }
}

int RoiAlign::level_of(const Box& box) const {
  const int last = static_cast<int>(a_.scales.size()) - 1;
  if (last == 0) return 0;
  const float area = (box[2] - box[0]) * (box[3] - box[1]);
  const float level = std::floor(static_cast<float>(a_.canonical_level) +
                                 std::log2(std::sqrt(area) / a_.canonical_size) + 1e-6f);
  if (!(level > static_cast<float>(a_.first_level))) return 0;  // also for an empty box
  return std::min(static_cast<int>(std::min(level, 100.0f)) - a_.first_level, last);
}

void RoiAlign::run(Context& context, const Step& step) const {
  const Rois& out = step.out.rois;
  const int lanes = context.kernels.lanes, count = step.count;
  const Value& boxes = *step.inputs.back();
  const LowPrecisionKernels* low = low_precision_kernels(context, out.type);
  const auto kernel = low ? low->roi : context.kernels.roi;
  const FeatureMap& first = step.inputs[0]->map;
  std::vector<Axis> ys(count), xs(count);
  std::vector<int32_t> start(count);  // first cell of each RoI's level
  for (int r = 0; r < count; r++) {
    const Box& box = boxes.shape.domain == Domain::boxes ? boxes.boxes[step.first + r]
                                                         : boxes.detections[step.first + r].box;
    const int level = level_of(box);
    const FeatureMap& map = step.inputs[level]->map;
    for (int i = 0; i < level; i++)
      start[r] += static_cast<int32_t>(cells_of(step.inputs[i]->map));
    xs[r].fill_box(box[0], box[2], a_, a_.scales[level], map.width);
    ys[r].fill_box(box[1], box[3], a_, a_.scales[level], map.height);
    xs[r].width = map.width;
  }
  const int vectors = divide_up(count, lanes);
  context.pool.parallel(vectors * out.height, [&](int item, int) {
    const int vector = item / out.height, by = item % out.height;
    const int block = vector * lanes / out.lanes, lane = vector * lanes % out.lanes;
    std::vector<int32_t> cells[kMaxLanes];
    std::vector<float> weights[kMaxLanes];
    for (int bx = 0; bx < out.width; bx++) {
      RoiArgs a{};
      a.map = step.prepared;
      a.int8_map = first.type == ElementType::int8;
      a.scale = (a.int8_map ? first.quantization.scale : 1.0f) / out.quantization.scale;
      a.channels = out.elements();
      a.pitch = cell_pitch(first, out.type);
      a.bias = bias_.empty() ? nullptr : bias_.data();
      a.relu = a_.relu;
      a.out = out.at(block, by, bx, 0) + lane;
      a.channel_stride = out.lanes;
      for (int l = 0; l < lanes && vector * lanes + l < count; l++) {
        const int r = vector * lanes + l;
        const Axis &ay = ys[r], &ax = xs[r];
        cells[l].clear();
        weights[l].clear();
        for (int i = ay.start[by]; i < ay.start[by + 1]; i++)
          for (int j = ax.start[bx]; j < ax.start[bx + 1]; j++) {
            cells[l].push_back(start[r] + ay.cell[i] * ax.width + ax.cell[j]);
            weights[l].push_back(ay.weight[i] * ax.weight[j]);
          }
        a.cells[l] = cells[l].data();
        a.weights[l] = weights[l].data();
        a.count[l] = static_cast<int>(cells[l].size());
      }
      kernel(a);
    }
  });
}

}  // namespace sparsedet
