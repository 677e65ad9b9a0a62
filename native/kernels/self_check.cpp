#include "kernels/self_check.h"

#include <algorithm>

#include "kernels/elements.h"

namespace sparsedet {

namespace {

// float32, pairs of bfloat16 or four bytes in an element.
enum class Check { float32, bfloat16, int8 };

constexpr int kColumns = 19;  // of a matrix unit: a whole square, and a rest
constexpr int kRowTileMost = 2 * kSquare;

int weight_of(int row, int column, int channel) {
  return (row * 7 + column * 5 + channel * 3) % 9 - 4;
}
int value_of(int column, int pixel, int channel) {
  return (column * 3 + pixel * 5 + channel) % 8;
}

float join(Check check, int (*of)(int, int, int), int i, int j) {
  const auto value = [&](int channel) { return of(i, j, channel); };
  if (check == Check::float32) return static_cast<float>(value(0));
  if (check == Check::bfloat16)
    return join_bfloat16(static_cast<float>(value(0)), static_cast<float>(value(1)));
  uint32_t bytes[4];
  for (int c = 0; c < 4; c++)
    bytes[c] = static_cast<uint8_t>(value(c));
  return join_bytes(bytes);
}

struct Memory64 {
  alignas(64) float panel[kColumns * kVectors * kMaxLanes];
  alignas(64) float weights[kRowTileMost * 2 * kSquare];  // two squares of columns
  alignas(64) float partial[kRowTileMost * kVectors * kMaxLanes];
  alignas(64) float out[kRowTileMost * kVectors * kMaxLanes];
  float bias[kRowTileMost], scale[kRowTileMost];
  uint16_t index[kMaxTileRows * kColumns], counts[1 << kMaxTileRows];
};

// Arguments without weights: `rows` rows of float32 results from one panel.
SparseArgs arguments(Check check, int lanes, int rows, Memory64& m) {
  SparseArgs a{};
  for (int column = 0; column < kColumns; column++)
    for (int pixel = 0; pixel < kVectors * lanes; pixel++)
      m.panel[column * kVectors * lanes + pixel] = join(check, value_of, column, pixel);
  for (int row = 0; row < rows; row++) {
    m.bias[row] = static_cast<float>(row - 3);
    m.scale[row] = 1;
  }
  a.panel = m.panel;
  a.values = m.weights;
  a.columns = kColumns;
  a.vectors = kVectors;
  a.partial = m.partial;
  a.first = a.last = true;
  a.bias = m.bias;
  a.scale = m.scale;
  a.out = m.out;
  a.row_stride = kVectors * lanes;
  a.rows = rows;
  for (int p = 0; p < kVectors; p++) {
    a.offset[p] = p * lanes;
    a.valid[p] = lanes;
  }
  a.activation = Activation::relu;
  return a;
}

bool right(Check check, int lanes, int rows, const Memory64& m) {
  const int channels = check == Check::float32 ? 1 : check == Check::bfloat16 ? 2 : 4;
  for (int row = 0; row < rows; row++)
    for (int pixel = 0; pixel < kVectors * lanes; pixel++) {
      int sum = row - 3;
      for (int column = 0; column < kColumns; column++)
        for (int c = 0; c < channels; c++)
          sum += weight_of(row, column, c) * value_of(column, pixel, c);
      if (m.out[row * kVectors * lanes + pixel] != static_cast<float>(std::max(sum, 0)))
        return false;
    }
  return true;
}

// One row tile, whose columns have all rows.
bool check_sparse(Check check, void (*kernel)(const SparseArgs&), int lanes, int rows) {
  Memory64 m{};
  SparseArgs a = arguments(check, lanes, rows, m);
  for (int column = 0; column < kColumns; column++) {
    m.index[column] =
        static_cast<uint16_t>(column * kVectors * lanes * static_cast<int>(sizeof(float)) / 8);
    for (int row = 0; row < rows; row++)
      m.weights[column * rows + row] = join(check, weight_of, row, column);
  }
  m.counts[(1 << rows) - 2] = kColumns;
  a.index = m.index;
  a.counts = m.counts;
  a.row_tiles = 1;
  kernel(a);
  return right(check, lanes, rows, m);
}

// The same rows one by one, the last one first.
bool check_rowwise(const Float32Kernels& k) {
  Memory64 m{};
  constexpr int rows = kMaxTileRows;
  SparseArgs a = arguments(Check::float32, k.lanes, rows, m);
  for (int i = 0; i < rows; i++) {
    m.counts[2 * i] = static_cast<uint16_t>(rows - 1 - i);
    m.counts[2 * i + 1] = kColumns;
    for (int column = 0; column < kColumns; column++) {
      m.index[i * kColumns + column] =
          static_cast<uint16_t>(column * kVectors * k.lanes * static_cast<int>(sizeof(float)) / 8);
      m.weights[i * kColumns + column] = join(Check::float32, weight_of, rows - 1 - i, column);
    }
  }
  a.index = m.index;
  a.counts = m.counts;
  a.row_tiles = rows;
  k.rowwise(a);
  return right(Check::float32, k.lanes, rows, m);
}

bool check_matrix(Check check, const MatrixKernels& kernels) {
  Memory64 m{};
  constexpr int lanes = kSquare, rows = 2 * kSquare;
  SparseArgs a = arguments(check, lanes, rows, m);
  for (int row = 0; row < rows; row++)
    for (int column = 0; column < kColumns; column++)
      m.weights[((row / kSquare * 2 + column / kSquare) * kSquare + row % kSquare) * kSquare +
                column % kSquare] = join(check, weight_of, row, column);
  a.row_tiles = 2;
  kernels.prepare_thread();
  kernels.product(a);
  kernels.release_thread();
  return right(check, lanes, rows, m);
}

}  // namespace

bool check_float32(const Float32Kernels& k) {
  return check_sparse(Check::float32, k.sparse[k.tile_rows], k.lanes, k.tile_rows) &&
         check_rowwise(k);
}
bool check_bfloat16(const LowPrecisionKernels& k) {
  return check_sparse(Check::bfloat16, k.sparse[k.tile_rows], k.lanes, k.tile_rows);
}
bool check_int8(const LowPrecisionKernels& k) {
  return check_sparse(Check::int8, k.sparse[k.tile_rows], k.lanes, k.tile_rows);
}
bool check_bfloat16(const MatrixKernels& k) {
  return check_matrix(Check::bfloat16, k);
}
bool check_int8(const MatrixKernels& k) {
  return check_matrix(Check::int8, k);
}

}  // namespace sparsedet
