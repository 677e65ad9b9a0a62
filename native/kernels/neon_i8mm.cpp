// int8 with NEON's dot product of four unsigned and four signed bytes (FEAT_I8MM); sums are exact.
#define SPARSEDET_LANES 4
#include "kernels/arm_features.h"
#include "kernels/neon_bytes.h"

#include "kernels/int8_kernels.h"

namespace sparsedet {
namespace {

struct I8mmInt8 : Int8Product {
  static SPARSEDET_INLINE V add_product(V sum, V weight, V x) {
    return (V)vusdotq_s32((int32x4_t)sum, (uint8x16_t)x, (int8x16_t)weight);
  }
};

bool supported() {
  return has_feature(ArmFeature::int8_products);
}

}  // namespace
extern const LowPrecisionKernels kernels_neon_i8mm_int8;
const LowPrecisionKernels kernels_neon_i8mm_int8 = int8_kernels<I8mmInt8>(supported);
}  // namespace sparsedet
