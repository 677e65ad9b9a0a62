// Bytes of packed elements in vectors of NEON; see int8_results.h.
#pragma once
#include <arm_neon.h>

#include "kernels/vector.h"

namespace sparsedet {
namespace {

struct NeonBytes {
  // Rounds to nearest even and saturates to 0..255: the conversion saturates at zero.
  static SPARSEDET_INLINE uint32x4_t whole(V v) {
    return vminq_u32(vcvtnq_u32_f32((float32x4_t)v), vdupq_n_u32(255));
  }

  static SPARSEDET_INLINE V join(const V (&channels)[4]) {
    uint32x4_t elements = whole(channels[0]);
    elements = vsliq_n_u32(elements, whole(channels[1]), 8);
    elements = vsliq_n_u32(elements, whole(channels[2]), 16);
    return (V)vsliq_n_u32(elements, whole(channels[3]), 24);
  }

  static SPARSEDET_INLINE V join_line(const V (&v)[4]) {
    const uint16x8_t low = vcombine_u16(vmovn_u32(whole(v[0])), vmovn_u32(whole(v[1])));
    const uint16x8_t high = vcombine_u16(vmovn_u32(whole(v[2])), vmovn_u32(whole(v[3])));
    return (V)vcombine_u8(vmovn_u16(low), vmovn_u16(high));
  }

  // L bytes.
  static SPARSEDET_INLINE V load_bytes(const float* p) {
    const uint8x8_t bytes = vreinterpret_u8_f32(vld1_dup_f32(p));
    return (V)vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
  }
};
using Bytes = NeonBytes;

}  // namespace
}  // namespace sparsedet
