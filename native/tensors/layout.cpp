#include "tensors/layout.h"

#include <bit>
#include <cstdint>
#include <cstring>

namespace sparsedet {

float* Scratch::get(int worker, size_t floats) {
  auto& buffer = buffers_[worker];
  if (buffer.size() < floats + 16) buffer.resize(floats + 16);
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(buffer.data()) + 63) &
                                  ~uintptr_t{63});
}

const LowPrecisionKernels* low_precision_kernels(const Context& context, ElementType type) {
  const Kernels& k = context.kernels;
  return type == ElementType::float32 ? nullptr : type == ElementType::int8 ? k.int8 : k.bf16;
}

void clear_border(Context& context, const FeatureMap& map) {
  const float zero = map.zero();
  const auto clear = [zero](float* from, ptrdiff_t count) {
    if (std::bit_cast<uint32_t>(zero))
      std::fill_n(from, count, zero);
    else  // thousands of short pieces: the library's own takes a third of the time
      std::memset(from, 0, count * sizeof(float));
  };
  clear(map.data, map.border * map.row());
  // Needed without a border, too: a filter tap to the right of the last row reads past its end.
  clear(map.data + (map.border + map.height) * map.row(), map.border * map.row() + 4 * map.lanes);
  const ptrdiff_t between = map.stride() - map.width, behind = between - map.margin();
  context.pool.parallel(map.height, [&](int y, int) {
    float* end = map.at(y, 0, -map.margin());
    clear(end, map.margin());
    end += map.margin() + map.width;  // of the pixels of an element
    for (int c = 1; c < map.elements(); c++, end += map.stride())
      clear(end, between);  // with the margin of the next element
    clear(end, behind);
  });
}

namespace {

// Packs the channels of element c; value(channel) gives one channel.
template <class Value>
float join_element(ElementType type, Quantization quantization, int c, const Value& value) {
  if (type == ElementType::float32) return value(c);
  if (type == ElementType::bfloat16) return join_bfloat16(value(2 * c), value(2 * c + 1));
  uint32_t bytes[4];
  for (int i = 0; i < 4; i++)
    bytes[i] = to_byte(value(4 * c + i) / quantization.scale +
                       static_cast<float>(quantization.zero_point));
  return join_bytes(bytes);
}

float value_at(ElementType type, Quantization quantization, const float* element, int channel) {
  if (type == ElementType::float32) return *element;
  if (type == ElementType::int8)
    return static_cast<float>(static_cast<int>(byte_of(*element, channel)) -
                              quantization.zero_point) *
           quantization.scale;
  return channel % 2 ? odd_of(*element) : even_of(*element);
}

}  // namespace

void fill_map(const float* from, int width, const FeatureMap& to) {
  auto value = [&](int c, int y, int x) {
    return c < to.channels && x < width ? from[(ptrdiff_t(c) * to.height + y) * width + x] : 0.0f;
  };
  for (int y = 0; y < to.height; y++)
    for (int c = 0; c < to.elements(); c++) {
      float* out = to.at(y, c, 0);
      clear_excess(to, y, c);
      for (int x = 0; x < to.width; x++)
        out[x] = to.type == ElementType::pixels
                     ? join_bfloat16(value(c, y, 2 * x), value(c, y, 2 * x + 1))
                     : join_element(to.type, to.quantization, c,
                                    [&](int channel) { return value(channel, y, x); });
    }
}

void read_map(const FeatureMap& from, int width, float* out) {
  for (int c = 0; c < from.channels; c++)
    for (int y = 0; y < from.height; y++)
      for (int x = 0; x < width; x++)
        if (from.type == ElementType::pixels)
          *out++ = value_at(ElementType::bfloat16, {}, from.at(y, c, x / 2), x % 2);
        else
          *out++ = value_at(from.type, from.quantization,
                            from.at(y, c / channels_per_element(from.type), x), c);
}

void fill_rois(const float* from, int count, const Rois& to) {
  auto value = [&](int r, int c, int y, int x) {
    return c < to.channels ? from[((ptrdiff_t(r) * to.channels + c) * to.height + y) * to.width + x]
                           : 0.0f;
  };
  for (int r = 0; r < count; r++)
    for (int c = 0; c < to.elements(); c++)
      for (int y = 0; y < to.height; y++)
        for (int x = 0; x < to.width; x++)
          to.at(r / to.lanes, y, x, c)[r % to.lanes] = join_element(
              to.type, to.quantization, c, [&](int channel) { return value(r, channel, y, x); });
}

void read_rois(const Rois& from, int count, float* out) {
  for (int r = 0; r < count; r++)
    for (int c = 0; c < from.channels; c++)
      for (int y = 0; y < from.height; y++)
        for (int x = 0; x < from.width; x++)
          *out++ = value_at(
              from.type, from.quantization,
              from.at(r / from.lanes, y, x, c / channels_per_element(from.type)) + r % from.lanes,
              c);
}

}  // namespace sparsedet
