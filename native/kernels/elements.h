// Packed elements (see kernels.h): their types, and reading and writing single ones. Only for
// sources that are compiled without flags of an instruction set.
#pragma once
#include <cstdint>

namespace sparsedet {

// What a packed element holds. The stem reads `pixels` in bfloat16: the neighbouring pixels 2x and
// 2x + 1 of one channel, because its three input channels do not make pairs.
enum class ElementType { float32, bfloat16, pixels, int8 };

static inline int divide_up(int a, int b) {
  return (a + b - 1) / b;
}

static inline int channels_per_element(ElementType type) {
  return type == ElementType::bfloat16 ? 2 : type == ElementType::int8 ? 4 : 1;
}

// Elements that hold `channels` channels of one pixel (of type pixels: of two pixels).
static inline int element_count(ElementType type, int channels) {
  return divide_up(channels, channels_per_element(type));
}

// Upper half of a float32, rounded to nearest even. Not for NaN.
static inline uint32_t to_bfloat16(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static inline float join_bfloat16(float even, float odd) {
  return __builtin_bit_cast(float, to_bfloat16(even) | to_bfloat16(odd) << 16);
}

static inline float even_of(float element) {
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, element) << 16);
}

static inline float odd_of(float element) {
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, element) & 0xffff0000u);
}

// The value of an int8 activation (a byte, 0..255): (byte - zero_point) * scale. The zero point of
// a tensor without negative values is 0.
struct Quantization {
  float scale = 1;
  int zero_point = 0;
};

// Rounds to nearest even and saturates to 0..255; NaN becomes 0.
static inline uint32_t to_byte(float x) {
  if (!(x > 0)) return 0;
  if (x > 255) return 255;
  constexpr float shift = 0x1p23f;  // float32 has no fractions from here on
  return static_cast<uint32_t>((x + shift) - shift);
}

static inline float join_bytes(const uint32_t (&bytes)[4]) {
  return __builtin_bit_cast(float, bytes[0] | bytes[1] << 8 | bytes[2] << 16 | bytes[3] << 24);
}

// The element whose channels are all zero.
static inline float zero_element(ElementType type, Quantization quantization) {
  if (type != ElementType::int8) return 0;
  const auto zero = static_cast<uint32_t>(quantization.zero_point);
  return join_bytes({zero, zero, zero, zero});
}

// Byte `channel` % 4 of an element, counted from the lowest.
static inline uint32_t byte_of(float element, int channel) {
  return __builtin_bit_cast(uint32_t, element) >> 8 * (channel % 4) & 255;
}

}  // namespace sparsedet
