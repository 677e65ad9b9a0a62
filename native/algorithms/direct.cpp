#include "algorithms/direct.h"

#include <algorithm>
#include <stdexcept>

#include "algorithms/pack_matrix.h"

namespace sparsedet {

namespace {

// Number of pixel tiles (a tile's P vectors of pixels) that one block of weights is swept over.
// Many, so that the branch predictor learns the loop lengths once for all of them; but with more
// than this the second-level cache no longer delivers the partial sums in time (measured with 17,
// 25 and 32 tiles of the largest chunk).
int sweep_tiles(const PackedConv& conv, int width) {
  constexpr int most = 64, bytes = 1100 << 10;
  const int least = conv.layout == PackedLayout::matrix ? 4 : 25;
  if (conv.segments.size() == 1) return most;  // no sums wait for another block
  const int tile = conv.chunk_row_tiles * conv.tile_rows * width * static_cast<int>(sizeof(float));
  return std::clamp(bytes / tile, least, most);
}

// Number of sweeps that `tiles` pixel tiles (or positions) are cut into: few, and such that sweeps
// times chunks divide evenly among the threads.
int count_sweeps(int tiles, int longest, int chunks, int threads) {
  int sweeps = divide_up(tiles, longest);
  while (sweeps * chunks % threads && sweeps < tiles)
    sweeps++;
  return sweeps;
}

// The kernel of a convolution, and the calling thread prepared for it.
class ReadyKernel {
 public:
  ReadyKernel(const Context& context, const PackedConv& conv)
      : matrix_(conv.layout == PackedLayout::matrix
                    ? matrix_kernels(context.kernels, conv.shape.in_type)
                    : nullptr) {
    const LowPrecisionKernels* low = low_precision_kernels(context, conv.shape.in_type);
    run_ = matrix_                                ? matrix_->product
           : low                                  ? low->sparse[conv.tile_rows]
           : conv.layout == PackedLayout::rowwise ? context.kernels.rowwise
                                                  : context.kernels.sparse[conv.tile_rows];
    if (matrix_) matrix_->prepare_thread();
  }
  ~ReadyKernel() {
    if (matrix_) matrix_->release_thread();
  }
  ReadyKernel(const ReadyKernel&) = delete;
  ReadyKernel& operator=(const ReadyKernel&) = delete;

  void operator()(const SparseArgs& a) const { run_(a); }

 private:
  const MatrixKernels* const matrix_;
  void (*run_)(const SparseArgs&);
};

// The arguments that depend on the chunk of rows and the block of columns only.
SparseArgs chunk_args(const PackedConv& conv, size_t block, int chunk) {
  const Stream& stream = conv.streams[block][chunk];
  const int first = chunk * conv.chunk_row_tiles;
  SparseArgs a{};
  a.index = stream.index.data();
  a.values = stream.values.data();
  a.counts = stream.counts.data();
  a.columns = conv.columns(block);
  a.row_tiles = std::min(conv.chunk_row_tiles, conv.row_tiles - first);
  a.bias = conv.bias.data() + first * conv.tile_rows;
  a.scale = conv.scale.data() + (conv.scale.empty() ? 0 : first * conv.tile_rows);
  a.residual_scale = conv.residual_scale;
  a.out_scale = conv.out_scale;
  a.out_zero = conv.out_zero;
  a.outside = zero_element(conv.shape.out_type, conv.shape.out_quantization);
  a.packed_output = conv.shape.out_type != ElementType::float32;
  a.rows =
      std::min(element_count(conv.shape.out_type, conv.shape.out_channels) - conv.out_row(chunk),
               a.row_tiles * conv.tile_rows / channels_per_element(conv.shape.out_type));
  a.activation = conv.shape.activation;
  return a;
}

// Whether vectors of pixels take them from all rows of the output, one after the other, so that few
// lanes stay empty. Sums are the same. Loads and stores in parts cost time: below a seventh fewer
// tiles it does not pay (measured: maps 20, 34, 40 and 68 wide gain 7 to 28 %, 28 and 56 wide lose).
bool joins_rows(const FeatureMap& out) {
  if (out.width * (kMaxRuns - 1) < out.lanes - 1) return false;  // a vector of too many rows
  const int of_rows = divide_up(divide_up(out.width, out.lanes) * out.height, kVectors);
  const int joined = divide_up(divide_up(out.width * out.height, out.lanes), kVectors);
  return joined * 7 <= of_rows * 6;
}

// A convolution of a feature map. Vectors count those of all rows of the output.
struct MapConv {
  const PackedConv& conv;
  const FeatureMap &in, *residual, &out;

  const bool joined = joins_rows(out);
  const int row_vectors = divide_up(out.width, out.lanes);
  const int vectors =
      joined ? divide_up(out.width * out.height, out.lanes) : row_vectors * out.height;
  // Stride along x in elements: elements of two pixels have the stride 2 built in.
  const int stride = conv.shape.stride / (in.type == ElementType::pixels ? 2 : 1);

  size_t panel_floats() const {
    size_t most = 0;
    for (size_t b = 0; b < conv.segments.size(); b++)
      most = std::max(most, size_t(conv.columns(b)) * kVectors * out.lanes);
    return most;
  }
  size_t partial_floats() const {
    return size_t(conv.chunk_row_tiles) * conv.tile_rows * kVectors * out.lanes;
  }

  struct Pixel {
    int y, x;
  };
  // The first pixel of vector v.
  Pixel first_pixel(int v) const {
    if (joined) return {v * out.lanes / out.width, v * out.lanes % out.width};
    return {v / row_vectors, v % row_vectors * out.lanes};
  }

  // Its address at filter tap (dy, dx) of a channel.
  const float* source(int v, int dy, int dx, int channel) const {
    const auto [y, x] = first_pixel(v);
    return in.at(y * conv.shape.stride + dy, channel, x * stride + dx);
  }

  // The lanes of vector v, where a pixel is `row` and `pixel` floats from its neighbours.
  LaneRuns runs_of(int v, ptrdiff_t row, ptrdiff_t pixel) const {
    LaneRuns runs{};
    auto [y, x] = first_pixel(v);
    const int end = std::min(out.lanes, out.width * out.height - v * out.lanes);
    for (int lane = 0; lane < end; x = 0, y++) {
      runs.offset[runs.count] = y * row + (x - lane) * pixel;
      lane = std::min(end, lane + out.width - x);
      runs.end[runs.count++] = lane;
    }
    return runs;
  }

  void pack_panel(Context& context, size_t block, int first, int count, float* panel) const {
    LaneRuns runs[kVectors];
    PackArgs pack{};
    for (int p = 0; joined && p < count; p++)
      runs[p] = runs_of(first + p, in.row() * conv.shape.stride, stride);
    pack.runs = joined ? runs : nullptr;
    pack.channel_stride = in.stride();
    pack.vectors = count;
    pack.stride = stride;
    pack.panel = panel;
    for (const Segment& s : conv.segments[block]) {
      if (joined) pack.source[0] = in.at(s.dy, s.channel, s.dx);
      for (int p = 0; !joined && p < count; p++)
        pack.source[p] = source(first + p, s.dy, s.dx, s.channel);
      pack.count = s.count;
      context.kernels.pack(pack);
      pack.panel += s.count * kVectors * out.lanes;
    }
  }

  // runs: [kVectors], where they are kept.
  void set_outputs(int first, SparseArgs& a, LaneRuns* runs) const {
    a.runs = joined ? runs : nullptr;
    for (int p = 0; p < a.vectors; p++) {
      if (joined) {
        runs[p] = runs_of(first + p, out.row(), 1);
        continue;
      }
      const auto [y, x] = first_pixel(first + p);
      a.offset[p] = y * out.row() + x;
      a.valid[p] = std::min(out.lanes, out.width - x);
    }
  }

  // Prefetch what is packed next: `tile` of a block.
  void set_prefetch(size_t block, int tile, SparseArgs& a) const {
    a.prefetch = nullptr;
    if (!conv.shape.pointwise() || block == conv.segments.size()) return;
    const Segment& s = conv.segments[block][0];
    a.prefetch = reinterpret_cast<const char*>(source(tile * kVectors, 0, 0, s.channel));
    a.prefetch_rows = divide_up(s.count, a.row_tiles);
    a.prefetch_stride = in.stride() * static_cast<ptrdiff_t>(sizeof(float));
  }

  // A chunk of rows at the tiles [first, last).
  void unit(Context& context, int worker, int chunk, int first, int last) const {
    const ReadyKernel kernel(context, conv);
    // Sums of each tile that wait for another block; a single block stores its sums at once.
    const size_t waiting = conv.segments.size() > 1 ? partial_floats() : 0;
    float* panel = context.scratch.get(
        worker, panel_floats() + partial_floats() + waiting * (last - first - 1));
    float* partial = panel + panel_floats();
    const ptrdiff_t chunk_offset = conv.out_row(chunk) * out.stride();
    LaneRuns runs[kVectors];
    for (size_t block = 0; block < conv.segments.size(); block++) {
      SparseArgs a = chunk_args(conv, block, chunk);
      a.panel = panel;
      a.first = block == 0;
      a.last = block + 1 == conv.segments.size();
      a.residual = residual ? residual->at(0, 0, 0) + chunk_offset : nullptr;
      a.residual_last = residual && conv.shape.residual_last;
      a.out = out.at(0, 0, 0) + chunk_offset;
      a.row_stride = out.stride();
      for (int tile = first; tile < last; tile++) {
        a.vectors = std::min(kVectors, vectors - tile * kVectors);
        a.partial = partial + (tile - first) * waiting;
        pack_panel(context, block, tile * kVectors, a.vectors, panel);
        set_outputs(tile * kVectors, a, runs);
        const bool wraps = tile + 1 == last;
        set_prefetch(block + wraps, wraps ? first : tile + 1, a);
        kernel(a);
      }
    }
  }
};

}  // namespace

void conv_map(Context& context, const PackedConv& conv, const FeatureMap& in,
              const FeatureMap* residual, const FeatureMap& out) {
  if (residual && (residual->row() != out.row() || residual->stride() != out.stride()))
    throw std::invalid_argument("a tensor is added that lies in memory otherwise than the output");
  const MapConv job{conv, in, residual, out};
  const int tiles = divide_up(job.vectors, kVectors);
  const int longest = sweep_tiles(conv, kVectors * out.lanes);
  const int sweeps = count_sweeps(tiles, longest, conv.chunks, context.pool.size());
  context.pool.parallel(sweeps * conv.chunks, [&](int unit, int worker) {
    const int chunk = unit % conv.chunks, sweep = unit / conv.chunks;
    job.unit(context, worker, chunk, static_cast<int>(int64_t(tiles) * sweep / sweeps),
             static_cast<int>(int64_t(tiles) * (sweep + 1) / sweeps));
  });
}

namespace {

struct RoiConv {
  const PackedConv& conv;
  const Rois &in, *residual, &out;
  int count;

  // Output cells of a block of RoIs. Positions count through all blocks.
  int cells() const { return out.height * out.width; }

  // Activations of a block of columns at an output position; null for a tap in the padding.
  const float* source(int position, const Segment& s) const {
    const int cell = position % cells();
    const int y = cell / out.width * conv.shape.stride + s.dy;
    const int x = cell % out.width * conv.shape.stride + s.dx;
    if (y < 0 || x < 0 || y >= in.height || x >= in.width) return nullptr;
    return in.at(position / cells(), y, x, s.channel);
  }

  // A chunk of rows at the positions [first, last).
  void unit(Context& context, int worker, int chunk, int first, int last) const {
    const size_t partial_floats = size_t(conv.chunk_row_tiles) * conv.tile_rows * out.lanes;
    const ReadyKernel kernel(context, conv);
    const size_t waiting = conv.segments.size() > 1 ? partial_floats : 0;
    float* partial = context.scratch.get(worker, partial_floats + waiting * (last - first - 1));
    const int row = conv.out_row(chunk);
    const int blocks = static_cast<int>(conv.segments.size());
    for (int block = 0; block < blocks; block++) {
      SparseArgs a = chunk_args(conv, block, chunk);
      const Segment& segment = conv.segments[block][0];
      a.row_stride = out.lanes;
      for (int p = 0; p < kVectors; p++) {
        a.offset[p] = p * context.kernels.lanes;
        a.valid[p] = context.kernels.lanes;
      }
      for (int position = first; position < last; position++) {
        a.panel = source(position, segment);
        if (!a.panel) continue;
        // First and last block of this position, without taps in the padding.
        a.first = a.last = true;
        for (int i = 0; i < block && a.first; i++)
          a.first = !source(position, conv.segments[i][0]);
        for (int i = block + 1; i < blocks && a.last; i++)
          a.last = !source(position, conv.segments[i][0]);
        const int b = position / cells(), cell = position % cells();
        const int y = cell / out.width, x = cell % out.width;
        a.vectors = divide_up(std::min(out.lanes, count - b * out.lanes), context.kernels.lanes);
        a.out = out.at(b, y, x, row);
        a.residual = residual ? residual->at(b, y, x, row) : nullptr;
        a.residual_last = residual && conv.shape.residual_last;
        a.partial = partial + (position - first) * waiting;
        const bool wraps = position + 1 == last;
        const float* next = block + wraps < blocks ? source(wraps ? first : position + 1,
                                                            conv.segments[block + wraps][0])
                                                   : nullptr;
        a.prefetch = reinterpret_cast<const char*>(next);
        a.prefetch_rows = divide_up(segment.count, a.row_tiles);
        a.prefetch_stride = out.lanes * static_cast<ptrdiff_t>(sizeof(float));
        kernel(a);
      }
    }
  }
};

}  // namespace

void conv_rois_unit(Context& context, const PackedConv& conv, const Rois& in, const Rois* residual,
                    const Rois& out, int count, int worker, int chunk, int first, int last) {
  RoiConv{conv, in, residual, out, count}.unit(context, worker, chunk, first, last);
}

void conv_rois(Context& context, const PackedConv& conv, const Rois& in, const Rois* residual,
               const Rois& out, int count) {
  const RoiConv job{conv, in, residual, out, count};
  const int positions = out.blocks * job.cells();
  const int sweeps =
      count_sweeps(positions, sweep_tiles(conv, out.lanes), conv.chunks, context.pool.size());
  context.pool.parallel(sweeps * conv.chunks, [&](int unit, int worker) {
    const int chunk = unit % conv.chunks, sweep = unit / conv.chunks;
    job.unit(context, worker, chunk, static_cast<int>(int64_t(positions) * sweep / sweeps),
             static_cast<int>(int64_t(positions) * (sweep + 1) / sweeps));
  });
}

}  // namespace sparsedet
