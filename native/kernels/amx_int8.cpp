// int8 by AMX, whose int32 sums are exact.
#define SPARSEDET_LANES 16
#define SPARSEDET_AMX_PRODUCT(sums, weights, panel) _tile_dpbsud(sums, weights, panel)
#include "kernels/amx.h"
#include "kernels/amx_permission.h"
#include "kernels/int8_results.h"
#include "kernels/x86_bytes.h"

namespace sparsedet {
namespace {

// Two row tiles: the four rows of an element lie one after the other.
template <int P>
SPARSEDET_INLINE void finish(const SparseArgs& a, int tile, const float* sums) {
  for (int r = 0; r < 2 * kSquare; r += 4) {
    const int row = tile * kSquare + r;
    if ((a.packed_output ? row / 4 : row) >= a.rows) break;
    V sum[4][P];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
#pragma GCC unroll 8
      for (int p = 0; p < P; p++)
        sum[i][p] = load(sums + (r + i) * kColumn + p * L);
    finish_element<Bytes>(a, row / 4, 0, sum);
  }
}

void product(const SparseArgs& a) {
  matrix_product(
      a, [](int) { return (V){}; },
      [&](int tile, const float* sums) {
        with_vectors(a.vectors, [&]<int P>() { finish<P>(a, tile, sums); });
      });
}

bool supported() {
  return amx_permission().int8;
}

}  // namespace
extern const MatrixKernels kernels_amx_int8_matrix;
// A product takes 16 cycles for 16,384 multiply-adds; the vector unit's dot products of four bytes
// do 128 in a cycle. Source: Intel's optimisation manual.
const MatrixKernels kernels_amx_int8_matrix = {supported, prepare_thread, release_thread,
                                               product,   matrix_peak<8>, 8};
}  // namespace sparsedet
