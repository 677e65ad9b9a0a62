// AVX-512: 32 registers of 16 lanes; 5 rows x 4 vectors leave room for the weights and one load.
#define SPARSEDET_LANES 16
#include "kernels/vector_kernels.h"

namespace sparsedet {
namespace {
bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("fma");
}
}  // namespace
extern const Float32Kernels kernels_avx512_f32;
const Float32Kernels kernels_avx512_f32 = {
    L,
    5,
    supported,
    {nullptr, nullptr, nullptr, nullptr, sparse<4>, sparse<5>, sparse<6>},
    rowwise,
    512,
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
