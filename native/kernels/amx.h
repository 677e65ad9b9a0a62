// The product of a matrix unit by AMX: 16 x 16 sums, 16 elements deep, in one instruction. The source
// file of a precision defines SPARSEDET_AMX_PRODUCT(sums, weights, panel), its instruction on three of
// the eight tile registers, and includes this header and the one that finishes sums.
//
// Four registers hold the sums of 2 row tiles x 2 vectors of pixels, two hold weights, two the panel:
// four loads of 1 KB feed four products. A panel is the second operand as it is, 16 columns with
// kVectors * L floats from one to the next.
//
// The compiler sees no memory that a tile is loaded from: before such a load, barrier() completes
// what was stored in C++.
#pragma once
#include <immintrin.h>

#include "kernels/vector.h"

namespace sparsedet {
namespace {

static_assert(L == kSquare);
constexpr int kColumn = kVectors * L;              // floats from one column of a panel to the next
constexpr int kSquareFloats = kSquare * kSquare;   // of one square of weights
constexpr int kRowTileFloats = kSquare * kColumn;  // sums of one row tile
constexpr long kWeightStride = kSquare * sizeof(float), kColumnStride = kColumn * sizeof(float);

// Shapes of the registers: all of them have 16 rows of 64 bytes. Source: Intel's manual, LDTILECFG.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileShapes) == 64);
constexpr TileShapes kShapes;

SPARSEDET_INLINE void barrier() {
  __asm__ volatile("" ::: "memory");
}

void prepare_thread() {
  _tile_loadconfig(&kShapes);
}

void release_thread() {
  _tile_release();
}

// 16 columns. weights: the square of the first row tile; that of the second lies `next` floats on.
template <int P>
SPARSEDET_INLINE void add_squares(const float* weights, ptrdiff_t next, const float* panel) {
  _tile_loadd(4, weights, kWeightStride);
  _tile_loadd(6, panel, kColumnStride);
  SPARSEDET_AMX_PRODUCT(0, 4, 6);
  _tile_loadd(5, weights + next, kWeightStride);
  SPARSEDET_AMX_PRODUCT(2, 5, 6);
  if constexpr (P == 2) {
    _tile_loadd(7, panel + L, kColumnStride);
    SPARSEDET_AMX_PRODUCT(1, 4, 7);
    SPARSEDET_AMX_PRODUCT(3, 5, 7);
  }
}

// The sums of two row tiles for P vectors, from `partial` and back.
template <int P>
SPARSEDET_INLINE void add_block(const SparseArgs& a, const float* weights, const float* panel,
                                const float* tail, float* partial, bool prefetch) {
  const int squares = a.columns / kSquare;
  const ptrdiff_t next = ptrdiff_t((a.columns + kSquare - 1) / kSquare) * kSquareFloats;
  float* const second = partial + kRowTileFloats;
  barrier();
  _tile_loadd(0, partial, kColumnStride);
  _tile_loadd(2, second, kColumnStride);
  if constexpr (P == 2) {
    _tile_loadd(1, partial + L, kColumnStride);
    _tile_loadd(3, second + L, kColumnStride);
  }
  for (int i = 0; i < squares; i++) {
    add_squares<P>(weights, next, panel);
    if (prefetch)  // the weights of the next two row tiles; past the end is harmless
      for (int row = 0; row < kSquare; row++) {
        __builtin_prefetch(weights + 2 * next + row * kSquare, 0, 3);
        __builtin_prefetch(weights + 3 * next + row * kSquare, 0, 3);
      }
    weights += kSquareFloats;
    panel += kSquare * kColumn;
  }
  if (tail) add_squares<P>(weights, next, tail);
  _tile_stored(0, partial, kColumnStride);
  _tile_stored(2, second, kColumnStride);
  if constexpr (P == 2) {
    _tile_stored(1, partial + L, kColumnStride);
    _tile_stored(3, second + L, kColumnStride);
  }
}

// The columns after the last whole square, then zeros: beyond the panel there may be anything.
// Returns null where there are none.
SPARSEDET_INLINE const float* copy_tail(const SparseArgs& a, float* tail) {
  const int from = a.columns / kSquare * kSquare;
  if (from == a.columns) return nullptr;
  for (int column = 0; column < kSquare; column++)
    for (int p = 0; p < a.vectors; p++) {
      const bool exists = from + column < a.columns;
      store(tail + column * kColumn + p * L,
            exists ? load(a.panel + (from + column) * kColumn + p * L) : (V){});
    }
  return tail;
}

// start(row): the sum that a row starts from. finish(tile, sums): the results of the row tiles `tile`
// and `tile` + 1.
template <class Start, class Finish>
SPARSEDET_INLINE void matrix_product(const SparseArgs& a, const Start& start,
                                     const Finish& finish) {
  alignas(64) float memory[kSquare * kColumn];
  const float* const tail = copy_tail(a, memory);
  const ptrdiff_t pair = 2 * ptrdiff_t((a.columns + kSquare - 1) / kSquare) * kSquareFloats;
  const float* weights = a.values;
  const char* prefetch = a.prefetch;
  float* partial = a.partial;
  for (int tile = 0; tile < a.row_tiles;
       tile += 2, weights += pair, partial += 2 * kRowTileFloats) {
    if (prefetch)
      for (int i = 0; i < 2 * a.prefetch_rows; i++, prefetch += a.prefetch_stride)
        for (int p = 0; p < a.vectors; p++)
          __builtin_prefetch(prefetch + p * L * 4, 0, 2);
    if (a.first)
      for (int row = 0; row < 2 * kSquare; row++)
        for (int p = 0; p < a.vectors; p++)
          store(partial + row * kColumn + p * L, start(tile * kSquare + row));
    int p = 0;
    for (; p + 2 <= a.vectors; p += 2)
      add_block<2>(a, weights, a.panel + p * L, tail ? tail + p * L : nullptr, partial + p * L,
                   p + 2 >= a.vectors);
    if (p < a.vectors)
      add_block<1>(a, weights, a.panel + p * L, tail ? tail + p * L : nullptr, partial + p * L,
                   true);
    if (a.last) finish(tile, partial);
  }
}

// See PeakArgs. FLOPS: operations of one element of both operands.
template <int FLOPS>
int64_t matrix_peak(const PeakArgs& a) {
  prepare_thread();  // which sets all registers to zero
  for (int64_t round = 0; round < a.rounds; round++) {
    SPARSEDET_AMX_PRODUCT(0, 4, 6);
    SPARSEDET_AMX_PRODUCT(1, 4, 7);
    SPARSEDET_AMX_PRODUCT(2, 5, 6);
    SPARSEDET_AMX_PRODUCT(3, 5, 7);
  }
  alignas(64) float sums[kSquareFloats];
  _tile_stored(0, sums, kWeightStride);
  *a.sink += sums[0];
  release_thread();
  return a.rounds * 4 * kSquare * kSquare * kSquare * FLOPS;
}

}  // namespace
}  // namespace sparsedet
