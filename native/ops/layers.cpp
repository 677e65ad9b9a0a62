#include "ops/layers.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/bfloat16.h"

namespace sparsedet {

namespace {

int divide_up(int a, int b) {
  return (a + b - 1) / b;
}

// Tiles that a block of weights is swept over: many, so that the branch predictor is trained once
// for all of them; but the partial sums of more than these no longer come from the second-level
// cache soon enough (measured: 17, 25 and 32 tiles of the largest chunk).
int sweep_tiles(const PackedConv& conv, int width) {
  constexpr int least = 25, most = 64, bytes = 1100 << 10;
  if (conv.segments.size() == 1) return most;  // nothing waits for another block
  const int tile = conv.chunk_groups * conv.group * width * static_cast<int>(sizeof(float));
  return std::clamp(bytes / tile, least, most);
}

// Units of work that `tiles` tiles (or positions) are cut into, times `chunks`: few, and as many
// for every thread.
int count_sweeps(int tiles, int longest, int chunks, int threads) {
  int sweeps = divide_up(tiles, longest);
  while (sweeps * chunks % threads && sweeps < tiles)
    sweeps++;
  return sweeps;
}

// Null for float32.
const WordKernels* word_kernels(const Context& context, Type type) {
  const Kernels& k = context.kernels;
  return type == Type::float32 ? nullptr : type == Type::int8 ? k.bytes : k.words;
}

auto sparse_kernel(const Context& context, const PackedConv& conv) {
  const WordKernels* words = word_kernels(context, conv.in);
  return words ? words->sparse[conv.group] : context.kernels.sparse[conv.group];
}

// Arguments that depend on the chunk of rows and the block of columns alone.
SparseArgs chunk_args(const PackedConv& conv, size_t block, int chunk) {
  const Stream& stream = conv.streams[block][chunk];
  const int first = chunk * conv.chunk_groups;
  SparseArgs a{};
  a.index = stream.index.data();
  a.values = stream.values.data();
  a.counts = stream.counts.data();
  a.groups = std::min(conv.chunk_groups, conv.groups - first);
  a.bias = conv.bias.data() + first * conv.group;
  a.scale = conv.scale.data() + (conv.scale.empty() ? 0 : first * conv.group);
  a.residual_scale = conv.residual_scale;
  a.words = conv.out != Type::float32;
  a.rows = std::min(words_of(conv.out, conv.out_channels) - conv.out_row(chunk),
                    a.groups * conv.group / channels_a_word(conv.out));
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

void clear_border(Context& context, const Map& map) {
  std::memset(map.data, 0, map.border * map.row() * sizeof(float));
  // Also without a border: a filter tap to the right of the last row reads past its end.
  std::memset(map.data + (map.border + map.height) * map.row(), 0,
              (map.border * map.row() + 4 * map.lanes) * sizeof(float));
  context.pool.parallel(map.height, [&](int y, int) {
    for (int c = 0; c < map.words(); c++)
      std::memset(map.at(y, c, -map.lanes), 0, map.lanes * sizeof(float));
  });
}

template <class T>
void normalise(Context& context, const T* pixels, int width, const float mean[3],
               const float std[3], const Map& out) {
  const float scale[3] = {1 / std[0], 1 / std[1], 1 / std[2]};
  const int excess = static_cast<int>(out.stride()) - out.lanes - out.width;
  context.pool.parallel(out.height, [&](int y, int) {
    const T* row = pixels + static_cast<ptrdiff_t>(y) * width * 3;
    for (int c = 0; c < 3; c++) {
      float* to = out.at(y, c, 0);
      const auto pixel = [&](int x) { return (row[x * 3 + c] - mean[c]) * scale[c]; };
      if (out.type == Type::float32) {
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

template void normalise(Context&, const uint8_t*, int, const float[3], const float[3], const Map&);
template void normalise(Context&, const float*, int, const float[3], const float[3], const Map&);

void conv_map(Context& context, const PackedConv& conv, const Map& in, const Map* residual,
              const Map& out) {
  const int lanes = out.lanes, row_vectors = divide_up(out.width, lanes);
  const int vectors = row_vectors * out.height, tiles = divide_up(vectors, kVectors);
  const int sweeps =
      count_sweeps(tiles, sweep_tiles(conv, kVectors * lanes), conv.chunks, context.pool.size());
  size_t panel_floats = 0;
  for (size_t b = 0; b < conv.segments.size(); b++)
    panel_floats = std::max(panel_floats, size_t(conv.columns(b)) * kVectors * lanes);
  const size_t partial_floats = size_t(conv.chunk_groups) * conv.group * kVectors * lanes;
  const auto kernel = sparse_kernel(context, conv);

  context.pool.parallel(sweeps * conv.chunks, [&](int unit, int worker) {
    const int chunk = unit % conv.chunks, sweep = unit / conv.chunks;
    const int first = static_cast<int>(int64_t(tiles) * sweep / sweeps);
    const int last = static_cast<int>(int64_t(tiles) * (sweep + 1) / sweeps);
    // Sums that wait for another block; those of a single block are gone before the next tile.
    const size_t waiting = conv.segments.size() > 1 ? partial_floats : 0;
    float* panel =
        context.scratch.get(worker, panel_floats + partial_floats + waiting * (last - first - 1));
    float* partial = panel + panel_floats;
    const ptrdiff_t chunk_offset = conv.out_row(chunk) * out.stride();
    // Of words along x: two pixels a word make up for stride 2.
    const int stride = in.type == Type::pixels ? conv.stride / 2 : conv.stride;
    // Source of vector v's first pixel at filter tap (dy, dx) of a channel.
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
        // What is packed next: the next tile of this block, else the first of the next block.
        const bool wraps = tile + 1 == last;
        const size_t next_block = block + wraps;
        a.prefetch = nullptr;
        if (conv.kernel == 1 && conv.stride == 1 && next_block < conv.segments.size()) {
          const Segment& s = conv.segments[next_block][0];
          a.prefetch = reinterpret_cast<const char*>(
              source((wraps ? first : tile + 1) * kVectors, 0, 0, s.channel));
          a.prefetch_rows = divide_up(s.count, a.groups);
          a.prefetch_stride = in.stride() * static_cast<ptrdiff_t>(sizeof(float));
        }
        kernel(a);
      }
    }
  });
}

void pool_map(Context& context, const Map& in, int padding_before, const Map& out) {
  const WordKernels* words = word_kernels(context, out.type);
  const auto kernel = words ? words->pool : context.kernels.pool;
  const int share = out.type == Type::int8 ? 4 : 1;  // else both are the same words
  context.pool.parallel(out.height, [&](int y, int) {
    PoolArgs a{};
    a.width = out.width;
    a.scale = 1 / out.q.scale;
    for (int c = 0; c < out.words(); c++) {
      for (int i = 0; i < share; i++)
        for (int r = 0; r < 3; r++)
          a.rows[i][r] = in.at(2 * y - padding_before + r, std::min(c * share + i, in.words() - 1),
                               -padding_before);
      a.out = out.at(y, c, 0);
      kernel(a);
    }
  });
}

namespace {

// What is convolved with what; one unit of work is a chunk of rows at some positions of a block.
struct RegionConv {
  const PackedConv& conv;
  int stride;
  const Regions &in, *residual, &out;
  int regions;

  int positions() const { return out.height * out.width; }

  // Activations of a block of columns, or null for a padding tap.
  const float* source(int b, int position, const Segment& s) const {
    const int y = position / out.width * stride + s.dy;
    const int x = position % out.width * stride + s.dx;
    if (y < 0 || x < 0 || y >= in.height || x >= in.width) return nullptr;
    return in.at(b, y, x, s.channel);
  }

  void unit(Context& context, int worker, int b, int chunk, int first, int last) const {
    const size_t partial_floats = size_t(conv.chunk_groups) * conv.group * out.lanes;
    const auto kernel = sparse_kernel(context, conv);
    const size_t waiting = conv.segments.size() > 1 ? partial_floats : 0;
    float* partial = context.scratch.get(worker, partial_floats + waiting * (last - first - 1));
    const int vectors =
        divide_up(std::min(out.lanes, regions - b * out.lanes), context.kernels.lanes);
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
        // The first and last block of this position, padding taps left out.
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
        a.prefetch_rows = divide_up(segment.count, a.groups);
        a.prefetch_stride = out.lanes * static_cast<ptrdiff_t>(sizeof(float));
        kernel(a);
      }
    }
  }
};

}  // namespace

void conv_regions(Context& context, const PackedConv& conv, int stride, const Regions& in,
                  const Regions* residual, const Regions& out, int regions) {
  const RegionConv job{conv, stride, in, residual, out, regions};
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

Regions winograd_tiles(float* data, int channels, const Regions& out) {
  return {
      data,      out.blocks,   channels, divide_up(out.height, kTile), divide_up(out.width, kTile),
      out.lanes, Type::float32};
}

}  // namespace

size_t winograd_floats(const Winograd& conv, const Regions& out) {
  return kPoints * (winograd_tiles(nullptr, conv.in_channels(), out).size() +
                    winograd_tiles(nullptr, conv.out_channels(), out).size());
}

void winograd_regions(Context& context, const Winograd& conv, const Regions& in, const Regions& out,
                      int regions, float* memory) {
  const Regions sources = winograd_tiles(memory, conv.in_channels(), out);
  const Regions products =
      winograd_tiles(memory + kPoints * sources.size(), conv.out_channels(), out);
  const int tiles = sources.height * sources.width;
  const auto vectors = [&](int b) {
    return divide_up(std::min(out.lanes, regions - b * out.lanes), context.kernels.lanes);
  };
  constexpr int slice = 64;  // channels of a unit of work
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
    Regions from = sources, to = products;
    from.data += point * sources.size();
    to.data += point * products.size();
    RegionConv{conv.points[point], 1, from, nullptr, to, regions}.unit(context, worker, b,
                                                                       unit % chunks, 0, tiles);
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

void mean_regions(Context& context, const Regions& in, const Regions& out) {
  const WordKernels* words = word_kernels(context, in.type);
  const auto kernel = words ? words->mean : context.kernels.mean;
  const int share = channels_a_word(in.type);
  constexpr int slice = 32;  // words of a unit of work: neighbours in memory
  const int slices = divide_up(in.words(), slice);
  context.pool.parallel(in.blocks * slices, [&](int item, int) {
    const int b = item / slices, first = item % slices * slice;
    for (int c = first; c < std::min(first + slice, in.words()); c++) {
      MeanArgs a{};
      a.source = in.at(b, 0, 0, c);
      a.cell_stride = ptrdiff_t(in.words()) * in.lanes;
      a.cells = in.height * in.width;
      a.lanes = in.lanes;
      a.scale = in.q.scale;
      for (int i = 0; i < share && c * share + i < in.channels; i++)
        a.out[i] = out.at(b, 0, 0, c * share + i);
      kernel(a);
    }
  });
}

void transpose_map(Context& context, const Map& in, Type regions, float* out) {
  context.pool.parallel(in.height, [&](int y, int) {
    const ptrdiff_t to = cell_pitch(in, regions);
    TransposeArgs a{in.at(y, 0, 0), in.stride(), in.words(), in.width, out + y * in.width * to, to};
    context.kernels.transpose(a);
  });
}

namespace {

// Bilinear weights of one axis of one box: cells and weights of every bin.
struct Axis {
  std::vector<int> start;  // [bins + 1] into the lists below
  std::vector<int32_t> cell;
  std::vector<float> weight;

  // A box's side in network input pixels.
  void fill_box(float from, float to, const RoiParams& params, int cells) {
    float scale = params.scale;
    if (params.corners) scale *= static_cast<float>(cells - 1) / static_cast<float>(cells);
    float low = from * scale, length = to * scale - low;
    if (params.corners) {  // so that the first sample falls on `low`, the last on low + length
      const auto samples = static_cast<float>(params.size * params.sampling_ratio);
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
    const float bin = length / static_cast<float>(params.size);
    const int samples = params.sampling_ratio > 0
                            ? params.sampling_ratio
                            : static_cast<int>(std::ceil(length / static_cast<float>(params.size)));
    for (int b = 0; b < params.size; b += params.step) {
      start.push_back(static_cast<int>(cell.size()));
      for (int s = 0; s < samples; s++) {
        float at = low - 0.5f + static_cast<float>(b) * bin +
                   (static_cast<float>(s) + 0.5f) * bin / static_cast<float>(samples);
        // Too far outside, or not a number: zero.
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

  // Samples come in ascending order, so an equal cell is one of the bin's last two.
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

void roi_align(Context& context, const RoiParams& params, const Map& map, const float* copy,
               const float* boxes, int count, const float* bias, bool relu, const Regions& out) {
  const int lanes = context.kernels.lanes, width = map.width;
  const WordKernels* words = word_kernels(context, out.type);
  const auto kernel = words ? words->roi : context.kernels.roi;
  std::vector<Axis> ys(count), xs(count);
  for (int r = 0; r < count; r++) {
    const float* box = boxes + r * 4;
    xs[r].fill_box(box[0], box[2], params, width);
    ys[r].fill_box(box[1], box[3], params, map.height);
  }
  const int groups = divide_up(count, lanes);
  context.pool.parallel(groups * out.height, [&](int item, int) {
    const int group = item / out.height, by = item % out.height;
    const int block = group * lanes / out.lanes, lane = group * lanes % out.lanes;
    std::vector<int32_t> cells[kMaxLanes];
    std::vector<float> weights[kMaxLanes];
    for (int bx = 0; bx < out.width; bx++) {
      RoiArgs a{};
      a.map = copy;
      a.bytes = map.type == Type::int8;
      a.scale = (a.bytes ? map.q.scale : 1.0f) / out.q.scale;
      a.channels = out.words();
      a.pitch = cell_pitch(map, out.type);
      a.bias = bias;
      a.relu = relu;
      a.out = out.at(block, by, bx, 0) + lane;
      a.channel_stride = out.lanes;
      for (int l = 0; l < lanes && group * lanes + l < count; l++) {
        const Axis &ay = ys[group * lanes + l], &ax = xs[group * lanes + l];
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
