// int8 with NEON's dot product of four signed bytes (FEAT_DotProd); sums are exact. Activations are
// unsigned: their products are those of activation - 128, and each sum starts from 128 times the sum
// of its weights.
#define SPARSEDET_LANES 4
#include "kernels/arm_features.h"
#include "kernels/neon_bytes.h"

#include "kernels/int8_kernels.h"

namespace sparsedet {
namespace {

SPARSEDET_INLINE int sum_of_bytes(const float* element) {
  const auto* bytes = reinterpret_cast<const int8_t*>(element);
  return bytes[0] + bytes[1] + bytes[2] + bytes[3];
}

// Adds the sums of the weights of each row of MASK, `columns` columns; then those of the next masks.
template <int MASK>
SPARSEDET_INLINE void add_weights(const float*& values, const uint16_t* counts, I (&sums)[kR]) {
  constexpr int n = __builtin_popcount(MASK);
  int of[n] = {};
  int columns = counts[MASK - 1];
  // Four columns are n vectors of four weights: lane l of vector g belongs to row (4 g + l) % n.
  int32x4_t lanes[n] = {};
  for (; columns >= 4; columns -= 4, values += 4 * n)
#pragma GCC unroll 4
    for (int g = 0; g < n; g++)
      lanes[g] = vdotq_s32(lanes[g], (int8x16_t)vld1q_f32(values + 4 * g), vdupq_n_s8(1));
#pragma GCC unroll 4
  for (int g = 0; g < n; g++)
#pragma GCC unroll 4
    for (int l = 0; l < 4; l++)
      of[(4 * g + l) % n] += lanes[g][l];
  for (; columns > 0; columns--)
#pragma GCC unroll 4
    for (int j = 0; j < n; j++)
      of[j] += sum_of_bytes(values++);
  int j = 0;
#pragma GCC unroll 4
  for (int r = 0; r < kR; r++)
    if (MASK >> r & 1) sums[r] += of[j++];
  if constexpr (MASK + 1 < 1 << kR) add_weights<MASK + 1>(values, counts, sums);
}

struct DotProdInt8 : Int8Product {
  static constexpr bool from_start = true;
  static void start(const float* values, const uint16_t* counts, I (&sums)[kR]) {
    add_weights<1>(values, counts, sums);
    for (I& sum : sums)
      sum *= 128;
  }
  static SPARSEDET_INLINE V add_product(V sum, V weight, V x) {
    const int8x16_t below = (int8x16_t)veorq_u8((uint8x16_t)x, vdupq_n_u8(128));
    return (V)vdotq_s32((int32x4_t)sum, below, (int8x16_t)weight);
  }
};

bool supported() {
  return has_feature(ArmFeature::dot_product);
}

}  // namespace
extern const LowPrecisionKernels kernels_neon_dotprod_int8;
const LowPrecisionKernels kernels_neon_dotprod_int8 = int8_kernels<DotProdInt8>(supported);
}  // namespace sparsedet
