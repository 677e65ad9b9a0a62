// NEON (AArch64): 32 registers of 4 lanes; 5 rows x 4 vectors.
#define SPARSEDET_LANES 4
#include "kernels/vector_kernels.h"

namespace sparsedet {
namespace {
bool supported() {
  return true;
}
}  // namespace
extern const Float32Kernels kernels_neon_f32;
const Float32Kernels kernels_neon_f32 = {
    L,
    5,
    supported,
    {nullptr, nullptr, nullptr, nullptr, sparse<4>, sparse<5>, nullptr},
    rowwise,
    64,  // not measured: as with AVX2
    pack,
    pool,
    transpose,
    roi,
    mean,
    depthwise<VectorFloat32>,
    sums<VectorFloat32>,
    affine<VectorFloat32>,
    softmax,
    winograd_input,
    winograd_output,
    peak,
    loads};
}  // namespace sparsedet
