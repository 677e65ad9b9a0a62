// AVX2 with FMA: 16 registers of 8 lanes; 3 rows x 4 vectors.
#define SPARSEDET_LANES 8
#include "kernels/vector_kernels.h"

namespace sparsedet {
namespace {
bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
}  // namespace
extern const Float32Kernels kernels_avx2_f32;
const Float32Kernels kernels_avx2_f32 = {
    L,
    3,
    supported,
    {nullptr, nullptr, sparse<2>, sparse<3>, nullptr, nullptr, nullptr},
    rowwise,
    64,
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
