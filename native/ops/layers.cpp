#include "ops/layers.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/elements.h"

namespace sparsedet {

namespace {

// Number of pixel tiles (a tile's P vectors of pixels) that one block of weights is swept over.
// Many, so that the branch predictor learns the loop lengths once for all of them; but with more
// than this the second-level cache no longer delivers the partial sums in time (measured with 17,
// 25 and 32 tiles of the largest chunk).
int sweep_tiles(const PackedConv& conv, int width) {
  constexpr int least = 25, most = 64, bytes = 1100 << 10;
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

// The kernels of bfloat16 or int8; null for float32.
const LowPrecisionKernels* low_precision_kernels(const Context& context, ElementType type) {
  const Kernels& k = context.kernels;
  return type == ElementType::float32 ? nullptr : type == ElementType::int8 ? k.int8 : k.bf16;
}

auto sparse_kernel(const Context& context, const PackedConv& conv) {
  const LowPrecisionKernels* low = low_precision_kernels(context, conv.in_type);
  return low ? low->sparse[conv.tile_rows] : context.kernels.sparse[conv.tile_rows];
}

// The arguments that depend on the chunk of rows and the block of columns only.
SparseArgs chunk_args(const PackedConv& conv, size_t block, int chunk) {
  const Stream& stream = conv.streams[block][chunk];
  const int first = chunk * conv.chunk_row_tiles;
  SparseArgs a{};
  a.index = stream.index.data();
  a.values = stream.values.data();
  a.counts = stream.counts.data();
  a.row_tiles = std::min(conv.chunk_row_tiles, conv.row_tiles - first);
  a.bias = conv.bias.data() + first * conv.tile_rows;
  a.scale = conv.scale.data() + (conv.scale.empty() ? 0 : first * conv.tile_rows);
  a.residual_scale = conv.residual_scale;
  a.packed_output = conv.out_type != ElementType::float32;
  a.rows = std::min(element_count(conv.out_type, conv.out_channels) - conv.out_row(chunk),
                    a.row_tiles * conv.tile_rows / channels_per_element(conv.out_type));
  a.relu = conv.relu;
  return a;
}

}  // namespace

float* Scratch::get(int worker, size_t floats) {
  auto& buffer = buffers_[worker];
  if (buffer.size() < floats + 16) buffer.resize(floats + 16);
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(buffer.data()) + 63) &
                                  ~uintptr_t{63});
}

void clear_border(Context& context, const FeatureMap& map) {
  std::memset(map.data, 0, map.border * map.row() * sizeof(float));
  // Needed without a border, too: a filter tap to the right of the last row reads past its end.
  std::memset(map.data + (map.border + map.height) * map.row(), 0,
              (map.border * map.row() + 4 * map.lanes) * sizeof(float));
  context.pool.parallel(map.height, [&](int y, int) {
    for (int c = 0; c < map.elements(); c++)
      std::memset(map.at(y, c, -map.margin()), 0, map.margin() * sizeof(float));
  });
}

template <class T>
void normalise(Context& context, const T* pixels, int width, const float mean[3],
               const float std[3], const FeatureMap& out) {
  const float scale[3] = {1 / std[0], 1 / std[1], 1 / std[2]};
  const int excess = static_cast<int>(out.stride()) - out.margin() - out.width;
  context.pool.parallel(out.height, [&](int y, int) {
    const T* row = pixels + static_cast<ptrdiff_t>(y) * width * 3;
    for (int c = 0; c < 3; c++) {
      float* to = out.at(y, c, 0);
      const auto pixel = [&](int x) { return (row[x * 3 + c] - mean[c]) * scale[c]; };
      if (out.type == ElementType::float32) {
        for (int x = 0; x < width; x++)
          to[x] = pixel(x);
      } else {
        for (int x = 0; x < width / 2; x++)
          to[x] = join_bfloat16(pixel(2 * x), pixel(2 * x + 1));
        if (width % 2) to[width / 2] = join_bfloat16(pixel(width - 1), 0.0f);
      }
      std::memset(to + out.width, 0, excess * sizeof(float));
    }
  });
}

template void normalise(Context&, const uint8_t*, int, const float[3], const float[3],
                        const FeatureMap&);
template void normalise(Context&, const float*, int, const float[3], const float[3],
                        const FeatureMap&);

void conv_map(Context& context, const PackedConv& conv, const FeatureMap& in,
              const FeatureMap* residual, const FeatureMap& out) {
  const int lanes = out.lanes, row_vectors = divide_up(out.width, lanes);
  const int vectors = row_vectors * out.height, tiles = divide_up(vectors, kVectors);
  const int sweeps =
      count_sweeps(tiles, sweep_tiles(conv, kVectors * lanes), conv.chunks, context.pool.size());
  size_t panel_floats = 0;
  for (size_t b = 0; b < conv.segments.size(); b++)
    panel_floats = std::max(panel_floats, size_t(conv.columns(b)) * kVectors * lanes);
  const size_t partial_floats = size_t(conv.chunk_row_tiles) * conv.tile_rows * kVectors * lanes;
  const auto kernel = sparse_kernel(context, conv);

  context.pool.parallel(sweeps * conv.chunks, [&](int unit, int worker) {
    const int chunk = unit % conv.chunks, sweep = unit / conv.chunks;
    const int first = static_cast<int>(int64_t(tiles) * sweep / sweeps);
    const int last = static_cast<int>(int64_t(tiles) * (sweep + 1) / sweeps);
    // Sums of each tile that wait for another block; a single block stores its sums at once.
    const size_t waiting = conv.segments.size() > 1 ? partial_floats : 0;
    float* panel =
        context.scratch.get(worker, panel_floats + partial_floats + waiting * (last - first - 1));
    float* partial = panel + panel_floats;
    const ptrdiff_t chunk_offset = conv.out_row(chunk) * out.stride();
    // Stride along x in elements: elements of two pixels have the stride 2 built in.
    const int stride = in.type == ElementType::pixels ? conv.stride / 2 : conv.stride;
    // Address of the first pixel of vector v, at filter tap (dy, dx) of a channel.
    auto source = [&](int v, int dy, int dx, int channel) {
      const int y = v / row_vectors, x = v % row_vectors * lanes;
      return in.at(y * conv.stride + dy, channel, x * stride + dx);
    };
    for (size_t block = 0; block < conv.segments.size(); block++) {
      SparseArgs a = chunk_args(conv, block, chunk);
      a.panel = panel;
      a.first = block == 0;
      a.last = block + 1 == conv.segments.size();
      a.residual = residual ? residual->at(0, 0, 0) + chunk_offset : nullptr;
      a.out = out.at(0, 0, 0) + chunk_offset;
      a.row_stride = out.stride();
      for (int tile = first; tile < last; tile++) {
        const int v0 = tile * kVectors;
        a.vectors = std::min(kVectors, vectors - v0);
        a.partial = partial + (tile - first) * waiting;
        PackArgs pack{};
        pack.channel_stride = in.stride();
        pack.vectors = a.vectors;
        pack.stride = stride;
        pack.panel = panel;
        for (const Segment& s : conv.segments[block]) {
          for (int p = 0; p < a.vectors; p++)
            pack.source[p] = source(v0 + p, s.dy, s.dx, s.channel);
          pack.count = s.count;
          context.kernels.pack(pack);
          pack.panel += s.count * kVectors * lanes;
        }
        for (int p = 0; p < a.vectors; p++) {
          const int y = (v0 + p) / row_vectors, x = (v0 + p) % row_vectors * lanes;
          a.offset[p] = y * out.row() + x;
          a.valid[p] = std::min(lanes, out.width - x);
        }
        // Prefetch what is packed next: the next tile of this block, or the first of the next
        // block.
        const bool wraps = tile + 1 == last;
        const size_t next_block = block + wraps;
        a.prefetch = nullptr;
        if (conv.kernel == 1 && conv.stride == 1 && next_block < conv.segments.size()) {
          const Segment& s = conv.segments[next_block][0];
          a.prefetch = reinterpret_cast<const char*>(
              source((wraps ? first : tile + 1) * kVectors, 0, 0, s.channel));
          a.prefetch_rows = divide_up(s.count, a.row_tiles);
          a.prefetch_stride = in.stride() * static_cast<ptrdiff_t>(sizeof(float));
        }
        kernel(a);
      }
    }
  });
}

void pool_map(Context& context, const FeatureMap& in, int padding_before, const FeatureMap& out) {
  const LowPrecisionKernels* low = low_precision_kernels(context, out.type);
  const auto kernel = low ? low->pool : context.kernels.pool;
  const int inputs = out.type == ElementType::int8 ? 4 : 1;  // else one element to one
  context.pool.parallel(out.height, [&](int y, int) {
    PoolArgs a{};
    a.width = out.width;
    a.scale = 1 / out.quantization.scale;
    for (int c = 0; c < out.elements(); c++) {
      for (int i = 0; i < inputs; i++)
        for (int r = 0; r < 3; r++)
          a.rows[i][r] = in.at(2 * y - padding_before + r,
                               std::min(c * inputs + i, in.elements() - 1), -padding_before);
      a.out = out.at(y, c, 0);
      kernel(a);
    }
  });
}

namespace {

// A convolution of RoIs. One unit of work is a chunk of rows at some positions of one block of
// RoIs.
struct RoiConv {
  const PackedConv& conv;
  int stride;
  const Rois &in, *residual, &out;
  int count;

  int positions() const { return out.height * out.width; }

  // Activations of a block of columns at an output position; null for a tap in the padding.
  const float* source(int b, int position, const Segment& s) const {
    const int y = position / out.width * stride + s.dy;
    const int x = position % out.width * stride + s.dx;
    if (y < 0 || x < 0 || y >= in.height || x >= in.width) return nullptr;
    return in.at(b, y, x, s.channel);
  }

  void unit(Context& context, int worker, int b, int chunk, int first, int last) const {
    const size_t partial_floats = size_t(conv.chunk_row_tiles) * conv.tile_rows * out.lanes;
    const auto kernel = sparse_kernel(context, conv);
    const size_t waiting = conv.segments.size() > 1 ? partial_floats : 0;
    float* partial = context.scratch.get(worker, partial_floats + waiting * (last - first - 1));
    const int vectors =
        divide_up(std::min(out.lanes, count - b * out.lanes), context.kernels.lanes);
    const int row = conv.out_row(chunk);
    const int blocks = static_cast<int>(conv.segments.size());
    for (int block = 0; block < blocks; block++) {
      SparseArgs a = chunk_args(conv, block, chunk);
      const Segment& segment = conv.segments[block][0];
      a.row_stride = out.lanes;
      a.vectors = vectors;
      for (int p = 0; p < vectors; p++) {
        a.offset[p] = p * context.kernels.lanes;
        a.valid[p] = context.kernels.lanes;
      }
      for (int position = first; position < last; position++) {
        a.panel = source(b, position, segment);
        if (!a.panel) continue;
        // First and last block of this position, without taps in the padding.
        a.first = a.last = true;
        for (int i = 0; i < block && a.first; i++)
          a.first = !source(b, position, conv.segments[i][0]);
        for (int i = block + 1; i < blocks && a.last; i++)
          a.last = !source(b, position, conv.segments[i][0]);
        const int y = position / out.width, x = position % out.width;
        a.out = out.at(b, y, x, row);
        a.residual = residual ? residual->at(b, y, x, row) : nullptr;
        a.partial = partial + (position - first) * waiting;
        const bool wraps = position + 1 == last;
        const float* next = block + wraps < blocks ? source(b, wraps ? first : position + 1,
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

void conv_rois(Context& context, const PackedConv& conv, int stride, const Rois& in,
               const Rois* residual, const Rois& out, int count) {
  const RoiConv job{conv, stride, in, residual, out, count};
  const int sweeps = count_sweeps(job.positions(), sweep_tiles(conv, out.lanes),
                                  conv.chunks * out.blocks, context.pool.size());
  context.pool.parallel(out.blocks * sweeps * conv.chunks, [&](int unit, int worker) {
    const int chunk = unit % conv.chunks, sweep = unit / conv.chunks % sweeps;
    const int b = unit / conv.chunks / sweeps;
    job.unit(context, worker, b, chunk, static_cast<int>(int64_t(job.positions()) * sweep / sweeps),
             static_cast<int>(int64_t(job.positions()) * (sweep + 1) / sweeps));
  });
}

namespace {

Rois winograd_tiles(float* data, int channels, const Rois& out) {
  return {data,
          out.blocks,
          channels,
          divide_up(out.height, kTile),
          divide_up(out.width, kTile),
          out.lanes,
          ElementType::float32};
}

}  // namespace

size_t winograd_floats(const Winograd& conv, const Rois& out) {
  return kPoints * (winograd_tiles(nullptr, conv.in_channels(), out).size() +
                    winograd_tiles(nullptr, conv.out_channels(), out).size());
}

void winograd_rois(Context& context, const Winograd& conv, const Rois& in, const Rois& out,
                   int count, float* memory) {
  const Rois sources = winograd_tiles(memory, conv.in_channels(), out);
  const Rois products = winograd_tiles(memory + kPoints * sources.size(), conv.out_channels(), out);
  const int tiles = sources.height * sources.width;
  const auto vectors = [&](int b) {
    return divide_up(std::min(out.lanes, count - b * out.lanes), context.kernels.lanes);
  };
  constexpr int slice = 64;  // channels in one unit of work
  const int in_slices = divide_up(in.channels, slice), out_slices = divide_up(out.channels, slice);

  context.pool.parallel(out.blocks * tiles * in_slices, [&](int unit, int) {
    const int b = unit / in_slices / tiles, tile = unit / in_slices % tiles;
    const int ty = tile / sources.width, tx = tile % sources.width, c = unit % in_slices * slice;
    WinogradArgs a{};
    for (int i = 0; i < kPoints; i++) {
      const int y = ty * kTile - 1 + i / kTileInput, x = tx * kTile - 1 + i % kTileInput;
      const bool inside = y >= 0 && x >= 0 && y < in.height && x < in.width;
      a.pixels[i] = inside ? in.at(b, y, x, c) : nullptr;
    }
    a.channels = std::min(slice, in.channels - c);
    a.vectors = vectors(b);
    a.points = sources.at(b, ty, tx, c);
    a.point_stride = sources.size();
    context.kernels.winograd_input(a);
  });

  const int chunks = conv.points[0].chunks;
  context.pool.parallel(kPoints * out.blocks * chunks, [&](int unit, int worker) {
    const int point = unit / chunks / out.blocks, b = unit / chunks % out.blocks;
    Rois from = sources, to = products;
    from.data += point * sources.size();
    to.data += point * products.size();
    RoiConv{conv.points[point], 1, from, nullptr, to, count}.unit(context, worker, b, unit % chunks,
                                                                  0, tiles);
  });

  context.pool.parallel(out.blocks * tiles * out_slices, [&](int unit, int) {
    const int b = unit / out_slices / tiles, tile = unit / out_slices % tiles;
    const int ty = tile / products.width, tx = tile % products.width;
    const int c = unit % out_slices * slice;
    WinogradArgs a{};
    for (int i = 0; i < kTile * kTile; i++) {
      const int y = ty * kTile + i / kTile, x = tx * kTile + i % kTile;
      a.pixels[i] = y < out.height && x < out.width ? out.at(b, y, x, c) : nullptr;
    }
    a.channels = std::min(slice, out.channels - c);
    a.vectors = vectors(b);
    a.points = products.at(b, ty, tx, c);
    a.point_stride = products.size();
    a.bias = conv.bias.data() + c;
    a.relu = conv.relu;
    context.kernels.winograd_output(a);
  });
}

void mean_rois(Context& context, const Rois& in, const Rois& out) {
  const LowPrecisionKernels* low = low_precision_kernels(context, in.type);
  const auto kernel = low ? low->mean : context.kernels.mean;
  const int per_element = channels_per_element(in.type);
  constexpr int slice = 32;  // elements in one unit of work: neighbours in memory
  const int slices = divide_up(in.elements(), slice);
  context.pool.parallel(in.blocks * slices, [&](int item, int) {
    const int b = item / slices, first = item % slices * slice;
    for (int c = first; c < std::min(first + slice, in.elements()); c++) {
      MeanArgs a{};
      a.source = in.at(b, 0, 0, c);
      a.cell_stride = ptrdiff_t(in.elements()) * in.lanes;
      a.cells = in.height * in.width;
      a.lanes = in.lanes;
      a.scale = in.quantization.scale;
      for (int i = 0; i < per_element && c * per_element + i < in.channels; i++)
        a.out[i] = out.at(b, 0, 0, c * per_element + i);
      kernel(a);
    }
  });
}

void transpose_map(Context& context, const FeatureMap& in, ElementType roi_type, float* out) {
  context.pool.parallel(in.height, [&](int y, int) {
    const ptrdiff_t to = cell_pitch(in, roi_type);
    TransposeArgs a{in.at(y, 0, 0),          in.stride(), in.elements(), in.width,
                    out + y * in.width * to, to};
    context.kernels.transpose(a);
  });
}

namespace {

// Bilinear interpolation along one axis of one box: the cells and weights of each bin.
struct Axis {
  std::vector<int> start;  // [bins + 1] into the lists below
  std::vector<int32_t> cell;
  std::vector<float> weight;

  // from, to: a side of the box, in network input pixels.
  void fill_box(float from, float to, const RoiParams& params, int cells) {
    float scale = params.roi_scale;
    if (params.roi_sampling == RoiSampling::corners)
      scale *= static_cast<float>(cells - 1) / static_cast<float>(cells);
    float low = from * scale, length = to * scale - low;
    if (params.roi_sampling ==
        RoiSampling::corners) {  // the first sample falls on `low`, the last on low + length
      const auto samples = static_cast<float>(params.roi_size * params.roi_sampling_ratio);
      const float step = length / (samples - 1.0f);
      low += 0.5f - 0.5f * step;
      length = step * samples;
    }
    fill(low, length, params, cells);
  }

 private:
  void fill(float low, float length, const RoiParams& params, int cells) {
    start.clear();
    cell.clear();
    weight.clear();
    const float bin = length / static_cast<float>(params.roi_size);
    const int samples =
        params.roi_sampling_ratio > 0
            ? params.roi_sampling_ratio
            : static_cast<int>(std::ceil(length / static_cast<float>(params.roi_size)));
    for (int b = 0; b < params.roi_size; b += params.roi_step) {
      start.push_back(static_cast<int>(cell.size()));
      for (int s = 0; s < samples; s++) {
        float at = low - 0.5f + static_cast<float>(b) * bin +
                   (static_cast<float>(s) + 0.5f) * bin / static_cast<float>(samples);
        // Samples far outside, and NaN, count as zero.
        if (!(at >= -1.0f && at <= static_cast<float>(cells))) continue;
        at = std::clamp(at, 0.0f, static_cast<float>(cells - 1));
        const int below = static_cast<int>(at);
        const float above = at - static_cast<float>(below);
        add(below, (1.0f - above) / static_cast<float>(samples));
        if (below + 1 < cells) add(below + 1, above / static_cast<float>(samples));
      }
    }
    start.push_back(static_cast<int>(cell.size()));
  }

  // Samples come in ascending order: if the bin has this cell already, it is one of the last two.
  void add(int c, float w) {
    for (int k = static_cast<int>(cell.size()) - 1; k >= start.back(); k--)
      if (cell[k] == c) {
        weight[k] += w;
        return;
      }
    cell.push_back(c);
    weight.push_back(w);
  }
};

}  // namespace

void roi_align(Context& context, const RoiParams& params, const FeatureMap& map, const float* copy,
               const float* boxes, int count, const float* bias, bool relu, const Rois& out) {
  const int lanes = context.kernels.lanes, width = map.width;
  const LowPrecisionKernels* low = low_precision_kernels(context, out.type);
  const auto kernel = low ? low->roi : context.kernels.roi;
  std::vector<Axis> ys(count), xs(count);
  for (int r = 0; r < count; r++) {
    const float* box = boxes + r * 4;
    xs[r].fill_box(box[0], box[2], params, width);
    ys[r].fill_box(box[1], box[3], params, map.height);
  }
  const int vectors = divide_up(count, lanes);
  context.pool.parallel(vectors * out.height, [&](int item, int) {
    const int vector = item / out.height, by = item % out.height;
    const int block = vector * lanes / out.lanes, lane = vector * lanes % out.lanes;
    std::vector<int32_t> cells[kMaxLanes];
    std::vector<float> weights[kMaxLanes];
    for (int bx = 0; bx < out.width; bx++) {
      RoiArgs a{};
      a.map = copy;
      a.int8_map = map.type == ElementType::int8;
      a.scale = (a.int8_map ? map.quantization.scale : 1.0f) / out.quantization.scale;
      a.channels = out.elements();
      a.pitch = cell_pitch(map, out.type);
      a.bias = bias;
      a.relu = relu;
      a.out = out.at(block, by, bx, 0) + lane;
      a.channel_stride = out.lanes;
      for (int l = 0; l < lanes && vector * lanes + l < count; l++) {
        const Axis &ay = ys[vector * lanes + l], &ax = xs[vector * lanes + l];
        cells[l].clear();
        weights[l].clear();
        for (int i = ay.start[by]; i < ay.start[by + 1]; i++)
          for (int j = ax.start[bx]; j < ax.start[bx + 1]; j++) {
            cells[l].push_back(ay.cell[i] * width + ax.cell[j]);
            weights[l].push_back(ay.weight[i] * ax.weight[j]);
          }
        a.cells[l] = cells[l].data();
        a.weights[l] = weights[l].data();
        a.count[l] = static_cast<int>(cells[l].size());
      }
      kernel(a);
    }
  });
}

}  // namespace sparsedet
