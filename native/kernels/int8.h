// Eight-bit activations, four of them in a word (kernels.h). Not for files with flags of their own.
#pragma once
#include <cstdint>

namespace sparsedet {

// What a number of 0..255 stands for: (number - zero) * scale. Without negative values zero is 0.
struct Quantised {
  float scale = 1;
  int zero = 0;
};

// To the nearest of 0..255, halves to the even one; not a number becomes 0.
static inline uint32_t to_byte(float x) {
  if (!(x > 0)) return 0;
  if (x > 255) return 255;
  constexpr float shift = 0x1p23f;  // from there on floats are whole numbers
  return static_cast<uint32_t>((x + shift) - shift);
}

static inline float join_bytes(const uint32_t (&bytes)[4]) {
  return __builtin_bit_cast(float, bytes[0] | bytes[1] << 8 | bytes[2] << 16 | bytes[3] << 24);
}

static inline uint32_t byte_of(float word, int channel) {
  return __builtin_bit_cast(uint32_t, word) >> 8 * (channel % 4) & 255;
}

}  // namespace sparsedet
