#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <stdexcept>

#include "algorithms/cut.h"

namespace sparsedet {

namespace {

// Of the counts of one row tile and block.
Extent extent(const PackedConv& conv, const uint16_t* counts) {
  if (conv.layout == PackedLayout::rowwise) return {counts[1], counts[1]};
  static constexpr auto rows =
      [] {  // popcount of a row mask; the baseline CPU has no instruction for it
        std::array<uint32_t, 1 << kMaxTileRows> n{};
        for (unsigned p = 1; p < n.size(); p++)
          n[p] = n[p / 2] + p % 2;
        return n;
      }();
  uint32_t columns = 0, weights = 0;
  for (int p = 0; p < conv.counts(); p++) {
    columns += counts[p];
    weights += counts[p] * rows[p + 1];
  }
  return {columns, weights};
}

size_t round_up(size_t a, size_t b) {
  return (a + b - 1) / b * b;
}

// Whether rowwise counts name each row of a chunk once.
bool names_each_row(std::span<const uint16_t> counts) {
  std::vector<bool> named(counts.size() / 2);
  for (size_t i = 0; i < counts.size(); i += 2) {
    if (counts[i] >= named.size() || named[counts[i]]) return false;
    named[counts[i]] = true;
  }
  return true;
}

}  // namespace

size_t counts_bytes(const PackedConv& conv) {
  return conv.segments.size() * conv.row_tiles * conv.counts() * sizeof(uint16_t);
}

size_t index_bytes(const PackedConv& conv, size_t columns) {
  return round_up(counts_bytes(conv) + columns * sizeof(uint16_t), 64);
}

size_t packed_bytes(const PackedConv& conv, Extent e) {
  return round_up(index_bytes(conv, e.columns) + e.weights * sizeof(float), 64);
}

// Sets the spans of the streams from the counts at the beginning of `bytes`, and shortens `bytes`
// to this convolution. False if it is longer than `bytes`.
bool set_streams(PackedConv& conv, std::span<const std::byte>& bytes) {
  if (bytes.size() < counts_bytes(conv)) return false;
  auto* counts = reinterpret_cast<const uint16_t*>(bytes.data());
  std::vector<Extent> extents;
  Extent all;
  for (size_t block = 0; block < conv.segments.size(); block++)
    for (int first = 0; first < conv.row_tiles; first += conv.chunk_row_tiles) {
      Extent& e = extents.emplace_back();
      for (int tile = first; tile < std::min(first + conv.chunk_row_tiles, conv.row_tiles);
           tile++, counts += conv.counts()) {
        const Extent one = extent(conv, counts);
        e.columns += one.columns;
        e.weights += one.weights;
      }
      all.columns += e.columns;
      all.weights += e.weights;
    }
  if (bytes.size() < packed_bytes(conv, all)) return false;
  auto* index = counts;
  auto* values = reinterpret_cast<const float*>(bytes.data() + index_bytes(conv, all.columns));
  counts = reinterpret_cast<const uint16_t*>(bytes.data());
  bytes = bytes.first(packed_bytes(conv, all));
  conv.streams.assign(conv.segments.size(), {});
  auto e = extents.begin();
  for (auto& streams : conv.streams)
    for (int first = 0; first < conv.row_tiles; first += conv.chunk_row_tiles, ++e) {
      const size_t n =
          size_t(std::min(conv.chunk_row_tiles, conv.row_tiles - first)) * conv.counts();
      streams.push_back({{index, e->columns}, {counts, n}, {values, e->weights}});
      counts += n;
      index += e->columns;
      values += e->weights;
    }
  return true;
}

PackedConv unpack_conv(const Kernels& kernels, const ConvShape& shape,
                       std::span<const std::byte>& packed, std::shared_ptr<const void> owner,
                       const float* bias, bool split_taps, PackedLayout layout) {
  PackedConv conv = cut_conv(kernels, shape, bias, split_taps, layout);
  conv.owner = std::move(owner);
  conv.packed = packed;
  bool good = set_streams(conv, conv.packed);
  const unsigned step = index_step(kernels);
  for (size_t block = 0; good && block < conv.streams.size(); block++) {
    const unsigned end = step * conv.columns(block);
    for (const Stream& stream : conv.streams[block]) {
      unsigned bad = 0;
      for (const unsigned at : stream.index)
        bad |= (at & (step - 1)) | (at >= end);
      good &= bad == 0 && (layout != PackedLayout::rowwise || names_each_row(stream.counts));
    }
  }
  if (!good) throw std::invalid_argument("packed weights do not fit the operation");
  packed = packed.subspan(conv.packed.size());
  return conv;
}

uint64_t checksum(std::span<const std::byte> bytes, Pool& pool) {
  constexpr size_t kPiece = size_t{256} << 10, kLanes = 8;
  constexpr uint64_t kFactor = 0x9e3779b97f4a7c15;
  const auto sum = [](const std::byte* data, size_t size) {
    uint64_t lanes[kLanes] = {}, value, all = size;
    for (size_t i = 0; i < size; i += 8) {
      value = 0;
      std::memcpy(&value, data + i, std::min<size_t>(8, size - i));
      uint64_t& lane = lanes[i / 8 % kLanes];
      lane = (lane ^ value) * kFactor;
      lane ^= lane >> 32;
    }
    for (uint64_t lane : lanes) {
      all = (all ^ lane) * kFactor;
      all ^= all >> 32;
    }
    return all;
  };
  std::vector<uint64_t> pieces((bytes.size() + kPiece - 1) / kPiece);
  pool.parallel(static_cast<int>(pieces.size()), [&](int i, int) {
    pieces[i] = sum(&bytes[i * kPiece], std::min(kPiece, bytes.size() - i * kPiece));
  });
  return sum(reinterpret_cast<const std::byte*>(pieces.data()), pieces.size() * sizeof(uint64_t));
}

int64_t nonzero_elements(const PackedConv& conv) {
  int64_t nonzero = -conv.split;
  for (const auto& streams : conv.streams)
    for (const Stream& stream : streams)
      for (const float& element : stream.values)
        nonzero += std::bit_cast<uint32_t>(element) != 0;
  return nonzero;
}

}  // namespace sparsedet
