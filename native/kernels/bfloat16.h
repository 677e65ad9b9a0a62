// bfloat16 numbers, two of them in a word (kernels.h). Not for files with flags of their own.
#pragma once
#include <cstdint>

namespace sparsedet {

// Upper half of a float32, rounded to nearest even. Not for NaN.
static inline uint32_t to_bfloat16(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static inline float join_bfloat16(float low, float high) {
  return __builtin_bit_cast(float, to_bfloat16(low) | to_bfloat16(high) << 16);
}

static inline float even_of(float word) {
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, word) << 16);
}

static inline float odd_of(float word) {
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, word) & 0xffff0000u);
}

}  // namespace sparsedet
