#include "ops/attention.h"

#include <cstring>

#include "ops/rows.h"

namespace sparsedet {

namespace {

constexpr int kMostCells = 1 << 14;
constexpr int kColumns = 128;  // of a panel that fits into the first-level cache

// The indices and counts of weights without a zero, as of one block of columns.
struct Streams {
  std::vector<uint16_t> index, counts;

  Streams(const Kernels& kernels, int row_tiles, int columns) {
    const size_t step = kVectors * kernels.lanes * sizeof(float) / 8;
    const size_t row_masks = (size_t{1} << kernels.tile_rows) - 1;
    for (int tile = 0; tile < row_tiles; tile++) {
      for (int k = 0; k < columns; k++)
        index.push_back(static_cast<uint16_t>(k * step));
      counts.resize(counts.size() + row_masks);
      counts.back() = static_cast<uint16_t>(columns);
    }
  }
};

// A matrix [rows][columns] that a run makes, multiplied by the kernel of convolutions.
class Matrix {
 public:
  Matrix(const Kernels& kernels, int rows, int columns)
      : kernels_(kernels),
        rows_(rows),
        columns_(columns),
        whole_(kernels, row_tiles(), std::min(columns, kColumns)),
        rest_(kernels, row_tiles(), columns % kColumns) {}

  int row_tiles() const { return divide_up(rows_, kernels_.tile_rows); }
  int padded_rows() const { return row_tiles() * kernels_.tile_rows; }
  size_t floats() const { return size_t(padded_rows()) * columns_; }

  // Writes the weights in the order of kernels.h, block by block. at(row, column): one of them.
  template <class At>
  void pack(float* weights, At at) const {
    const int R = kernels_.tile_rows;
    for (int from = 0; from < columns_; from += kColumns)
      for (int row = 0; row < padded_rows(); row += R)
        for (int k = from; k < std::min(columns_, from + kColumns); k++)
          for (int r = row; r < row + R; r++)
            *weights++ = r < rows_ ? at(r, k) : 0;
  }

  // out [rows][kVectors * L] = the matrix times panel [columns][kVectors * L]. partial: as large as
  // the padded rows of `out`; zeros: a float for each of them.
  void multiply(const float* weights, const float* panel, const float* zeros, float* partial,
                float* out) const {
    const int width = kVectors * kernels_.lanes;
    SparseArgs a{};
    a.row_tiles = row_tiles();
    a.vectors = kVectors;
    a.partial = partial;
    a.bias = zeros;
    a.out = out;
    a.row_stride = width;
    a.rows = rows_;
    for (int p = 0; p < kVectors; p++) {
      a.offset[p] = p * kernels_.lanes;
      a.valid[p] = kernels_.lanes;
    }
    for (int from = 0; from < columns_; from += kColumns) {
      const int columns = std::min(kColumns, columns_ - from);
      const Streams& streams = columns == columns_ % kColumns ? rest_ : whole_;
      a.panel = panel + ptrdiff_t{from} * width;
      a.index = streams.index.data();
      a.counts = streams.counts.data();
      a.values = weights;
      a.first = from == 0;
      a.last = from + columns == columns_;
      kernels_.sparse[kernels_.tile_rows](a);
      weights += ptrdiff_t{padded_rows()} * columns;
    }
  }

 private:
  const Kernels& kernels_;
  const int rows_, columns_;
  const Streams whole_, rest_;
};

// Cells in whole panels.
size_t padded(const FeatureMap& map) {
  const int width = kVectors * map.lanes;
  return size_t(divide_up(map.height * map.width, width)) * width;
}

}  // namespace

Shape Attention::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 1, 1);
  Shape out = expect(inputs, 0, Domain::map);
  const int each = out.channels / a_.heads;
  if (out.channels % a_.heads || each <= 2 * a_.key)
    throw std::invalid_argument("has channels that its heads do not fit");
  if (int64_t{out.height} * out.width > kMostCells)
    throw std::invalid_argument("attends to too many cells");
  out.channels -= 2 * a_.heads * a_.key;
  return out;
}

// All channels, cell by cell, and the keys and values of each head as weights.
size_t Attention::scratch_floats(const Value& out) const {
  const size_t cells = size_t(out.shape.height) * out.shape.width;
  const size_t channels = out.shape.channels + size_t(2) * a_.heads * a_.key;
  const size_t values = out.shape.channels / a_.heads;
  const size_t keys = (cells + kMaxTileRows) * a_.key;
  return channels * padded(out.map) + a_.heads * (keys + (values + kMaxTileRows) * cells);
}

void Attention::run(Context& context, const Step& step) const {
  const FeatureMap &in = step.inputs[0]->map, &out = step.out.map;
  const int cells = in.height * in.width, each = in.channels / a_.heads;
  const int count = each - 2 * a_.key, width = kVectors * context.kernels.lanes;
  const auto pitch = static_cast<ptrdiff_t>(padded(in));
  float* const all = step.scratch;  // [channels][pitch]
  context.pool.parallel(in.channels, [&](int c, int) {
    float* to = all + c * pitch;
    for (int y = 0; y < in.height; y++)
      to = std::copy_n(in.at(y, c, 0), in.width, to);
    std::fill(to, all + (c + 1) * pitch, 0.0f);
    for (int y = 0; c < out.channels && y < out.height; y++)
      clear_excess(out, y, c);
  });
  const Matrix keys(context.kernels, cells, a_.key), values(context.kernels, count, cells);
  const size_t floats = keys.floats() + values.floats();
  float* const weights = all + in.channels * pitch;  // [heads][floats]
  context.pool.parallel(a_.heads, [&](int head, int) {
    float* const to = weights + head * floats;
    const float* key = all + (ptrdiff_t{head} * each + a_.key) * pitch;
    keys.pack(to, [&](int cell, int c) { return key[c * pitch + cell] * a_.scale; });
    const float* value = key + a_.key * pitch;
    values.pack(to + keys.floats(), [&](int c, int cell) { return value[c * pitch + cell]; });
  });
  const int panels = divide_up(cells, width),
            rows = std::max(keys.padded_rows(), values.padded_rows());
  context.pool.parallel(a_.heads * panels, [&](int unit, int worker) {
    const int head = unit / panels, first = unit % panels * width;
    const float* const of_head = weights + head * floats;
    float* const query = context.scratch.get(
        worker, size_t(width) * (a_.key + cells + rows + values.padded_rows()) + rows);
    float* const shares = query + ptrdiff_t{a_.key} * width;  // [cells][width]
    float* const partial = shares + ptrdiff_t{cells} * width;
    float* const result = partial + ptrdiff_t{rows} * width;
    float* const zeros = result + ptrdiff_t{values.padded_rows()} * width;
    std::fill_n(zeros, rows, 0.0f);
    for (int c = 0; c < a_.key; c++)
      std::copy_n(all + (ptrdiff_t{head} * each + c) * pitch + first, width, query + c * width);
    keys.multiply(of_head, query, zeros, partial, shares);
    context.kernels.softmax({shares, cells});
    values.multiply(of_head + keys.floats(), shares, zeros, partial, result);
    for (int cell = first; cell < std::min(cells, first + width);) {
      const int y = cell / in.width, x = cell % in.width;
      const int run = std::min({in.width - x, cells - cell, first + width - cell});
      for (int c = 0; c < count; c++)
        std::copy_n(result + c * width + cell - first, run, out.at(y, head * count + c, x));
      cell += run;
    }
  });
}

}  // namespace sparsedet
