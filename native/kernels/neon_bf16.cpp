// bfloat16 with NEON's dot product of pairs (FEAT_BF16), which flushes denormals to zero.
#define SPARSEDET_LANES 4
#include "kernels/arm_features.h"
#include "kernels/bf16_kernels.h"

namespace sparsedet {
namespace {

struct NeonBfloat16 {
  static constexpr bool packed = true;

  static SPARSEDET_INLINE V weight(const float* p) { return broadcast_from(p); }
  static SPARSEDET_INLINE V add_product(V sum, V weight, V x) {
    return (V)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)x, (bfloat16x8_t)weight);
  }
  static SPARSEDET_INLINE V even(V elements) { return (V)((I)elements << 16); }
  static SPARSEDET_INLINE V odd(V elements) { return (V)((I)elements & -65536); }
  // Rounds to nearest even.
  static SPARSEDET_INLINE V join(V low, V high) {
    const auto even = (uint16x8_t)vcvtq_low_bf16_f32((float32x4_t)low);
    const auto odd = (uint16x8_t)vcvtq_low_bf16_f32((float32x4_t)high);
    return (V)vzip1q_u16(even, odd);
  }
};

bool supported() {
  return has_feature(ArmFeature::bfloat16);
}

}  // namespace
extern const LowPrecisionKernels kernels_neon_i8mm_bf16;
const LowPrecisionKernels kernels_neon_i8mm_bf16 = bf16_kernels<NeonBfloat16>(supported);
}  // namespace sparsedet
