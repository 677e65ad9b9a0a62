// bfloat16 by AMX, whose products and sums flush denormals to zero.
#define SPARSEDET_LANES 16
#define SPARSEDET_AMX_PRODUCT(sums, weights, panel) _tile_dpbf16ps(sums, weights, panel)
#include "kernels/amx.h"
#include "kernels/amx_permission.h"
#include "kernels/avx512_bf16.h"

namespace sparsedet {
namespace {

template <int P>
SPARSEDET_INLINE void load_row(const float* from, V (&to)[P]) {
#pragma GCC unroll 8
  for (int p = 0; p < P; p++)
    to[p] = load(from + p * L);
}

// Two row tiles: of even and of odd channels where the output holds pairs.
template <int P>
SPARSEDET_INLINE void finish(const SparseArgs& a, int tile, const float* sums) {
  V low[P], high[P];
  if (a.packed_output) {
    for (int r = 0; r < kSquare && tile / 2 * kSquare + r < a.rows; r++) {
      load_row(sums + r * kColumn, low);
      load_row(sums + kRowTileFloats + r * kColumn, high);
      finish_pairs<VectorBfloat16>(a, tile / 2 * kSquare + r, low, high);
    }
    return;
  }
  for (int r = 0; r < 2 * kSquare && tile * kSquare + r < a.rows; r++) {
    load_row(sums + r * kColumn, low);
    finish_row(a, tile * kSquare + r, low);
  }
}

void product(const SparseArgs& a) {
  matrix_product(
      a, [&](int row) { return broadcast(a.bias[row]); },
      [&](int tile, const float* sums) {
        with_vectors(a.vectors, [&]<int P>() { finish<P>(a, tile, sums); });
      });
}

bool supported() {
  return amx_permission().bf16;
}

}  // namespace
extern const MatrixKernels kernels_amx_bf16_matrix;
// A product takes 16 cycles for 8,192 multiply-adds; the vector unit's dot product of pairs does 32
// in a cycle. Source: Intel's optimisation manual.
const MatrixKernels kernels_amx_bf16_matrix = {supported, prepare_thread, release_thread,
                                               product,   matrix_peak<4>, 16};
}  // namespace sparsedet
