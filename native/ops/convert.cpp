#include "ops/convert.h"

#include <algorithm>

namespace sparsedet {

namespace {

// Channel `channel` of an element.
float read_channel(const Format& f, float element, int channel) {
  if (f.type == ElementType::float32) return element;
  if (f.type == ElementType::bfloat16) return channel % 2 ? odd_of(element) : even_of(element);
  const int steps = static_cast<int>(byte_of(element, channel)) - f.quantization.zero_point;
  return static_cast<float>(steps) * f.quantization.scale;
}

// The element of some channels' values.
float join_channels(const Format& f, const float (&values)[4]) {
  if (f.type == ElementType::float32) return values[0];
  if (f.type == ElementType::bfloat16) return join_bfloat16(values[0], values[1]);
  const float factor = 1 / f.quantization.scale;
  uint32_t bytes[4];
  for (int i = 0; i < 4; i++)
    bytes[i] =
        to_byte(__builtin_fmaf(values[i], factor, static_cast<float>(f.quantization.zero_point)));
  return join_bytes(bytes);
}

// Converts element c of the output: `count` neighbouring elements of memory.
// source(element): the same memory of an element of the input.
template <class Source>
void convert_element(const Format& from, const Format& to, int first, int channels, int c,
                     int count, const Source& source, float* out) {
  const int width = channels_per_element(to.type), of_input = channels_per_element(from.type);
  const float* sources[4] = {};
  for (int i = 0; i < width && c * width + i < channels; i++)
    sources[i] = source((first + c * width + i) / of_input);
  for (int x = 0; x < count; x++) {
    float values[4] = {};
    for (int i = 0; i < 4; i++)
      if (sources[i]) values[i] = read_channel(from, sources[i][x], first + c * width + i);
    out[x] = join_channels(to, values);
  }
}

void quantise_row(const QuantiseArgs& shared, const LowPrecisionKernels& kernels,
                  const FeatureMap& in, int first, int channels, const FeatureMap& out, int y,
                  int c) {
  QuantiseArgs a = shared;
  for (int i = 0; i < 4; i++)  // beyond the last channel, any values
    a.source[i] = in.at(y, first + std::min(4 * c + i, channels - 1), 0);
  a.out = out.at(y, c, 0);
  kernels.quantise(a);
}

void dequantise_row(const LowPrecisionKernels& kernels, const FeatureMap& in, int first,
                    int channels, const FeatureMap& out, int y, int c) {
  DequantiseArgs a{};
  a.source = in.at(y, first / 4 + c, 0);
  a.width = in.width;
  a.zero_point = in.quantization.zero_point;
  a.scale = in.quantization.scale;
  for (int i = 0; i < 4 && 4 * c + i < channels; i++)
    a.out[i] = out.at(y, 4 * c + i, 0);
  kernels.dequantise(a);
}

void convert_map(Context& context, const FeatureMap& in, int first, const FeatureMap& out) {
  const Format from{in.type, in.quantization}, to{out.type, out.quantization};
  const LowPrecisionKernels* kernels = context.kernels.int8;
  const bool quantise = from.type == ElementType::float32 && to.type == ElementType::int8;
  const bool dequantise =
      from.type == ElementType::int8 && to.type == ElementType::float32 && first % 4 == 0;
  const float factor = 1 / to.quantization.scale;
  const QuantiseArgs shared{
      {}, nullptr, out.width, factor, static_cast<float>(to.quantization.zero_point), out.zero()};
  constexpr int slice = 8;  // elements of one unit of work: neighbours in memory
  const int elements = dequantise ? divide_up(out.channels, 4) : out.elements();
  const int slices = divide_up(elements, slice);
  context.pool.parallel(out.height * slices, [&](int unit, int) {
    const int y = unit / slices, begin = unit % slices * slice;
    for (int c = begin; c < std::min(begin + slice, elements); c++) {
      if (quantise) {
        quantise_row(shared, *kernels, in, first, out.channels, out, y, c);
      } else if (dequantise) {
        dequantise_row(*kernels, in, first, out.channels, out, y, c);
      } else {
        convert_element(
            from, to, first, out.channels, c, out.width,
            [&](int element) { return in.at(y, element, 0); }, out.at(y, c, 0));
        clear_excess(out, y, c);
      }
    }
  });
}

void convert_rois(Context& context, const Rois& in, int first, const Rois& out) {
  const Format from{in.type, in.quantization}, to{out.type, out.quantization};
  const int cells = out.height * out.width;
  context.pool.parallel(out.blocks * cells, [&](int unit, int) {
    const int block = unit / cells, y = unit % cells / out.width, x = unit % out.width;
    for (int c = 0; c < out.elements(); c++)
      convert_element(
          from, to, first, out.channels, c, out.lanes,
          [&](int element) { return in.at(block, y, x, element); }, out.at(block, y, x, c));
  });
}

}  // namespace

Shape Convert::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 1, 1);
  Shape shape = inputs[0];
  if (shape.domain != Domain::map && shape.domain != Domain::rois)
    throw std::invalid_argument("converts a feature map or RoIs");
  const int channels = a_.channels ? a_.channels : shape.channels - a_.first;
  if (channels < 1 || a_.first > shape.channels - channels)
    throw std::invalid_argument("reaches beyond the channels of its input");
  shape.channels = channels;
  return shape;
}

Format Convert::format(std::span<const Format> inputs) const {
  if (inputs[0].type == ElementType::pixels)
    throw std::invalid_argument("the network input cannot be converted");
  return a_.to;
}

void Convert::run(Context& context, const Step& step) const {
  if (step.out.shape.domain == Domain::map)
    return convert_map(context, step.inputs[0]->map, a_.first, step.out.map);
  convert_rois(context, step.inputs[0]->rois, a_.first, step.out.rois);
}

size_t converted_bytes(const Value& in, const Value& out) {
  const Shape& shape = out.shape;
  const size_t cells = size_t(shape.height) * shape.width * shape.count;
  const int elements = element_count(in.format.type, shape.channels) +
                       element_count(out.format.type, shape.channels);
  return cells * elements * sizeof(float);
}

}  // namespace sparsedet
