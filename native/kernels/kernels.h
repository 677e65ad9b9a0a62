// The contract of a kernel. A kernel allocates nothing, starts no thread, keeps no state and
// throws nothing; its argument struct states every precondition. One source file an
// instruction set fills a Kernels table, and nothing but that table leaves the file.
//
// Glossary
//   L      lanes: floats a vector (scalar and NEON 4, AVX2 8, AVX-512 16)
//   P      vectors of pixels (or regions) that one tile holds in registers; kVectors at most
//   G      output channels that one group holds in registers
//   column one input value a pixel: an input channel at one tap of the filter
//   word   what one pixel of a channel takes, 4 bytes: a float32, or two bfloat16, of channels 2c
//          (low half) and 2c + 1, or four bytes of channels 4c (lowest) .. 4c + 3; kept in float
//          arrays in any case. What the last word holds beyond the channels is finite and has
//          zero weights. "Column", "channel" and "row" of a kernel's arguments count words: in
//          bfloat16 a column is a pair of input channels, its weight a pair of weights, its
//          product the sum of two
//   int8   activations are bytes 0..255, weights -127..127, their sums int32 and exact
//   panel  the activations of one tile for one block of columns:
//
//            column 0: | vector 0 | vector 1 | ... | vector kVectors-1 |
//            column 1: | vector 0 | ...
//          kVectors * L floats a column, whatever P is, aligned to a vector
//
// Packed weights of one group of G rows and one block of columns. Every column has a pattern,
// the G-bit mask of the rows whose weight is not zero; columns of equal pattern lie together:
//
//            counts:  | columns with pattern 1 | with pattern 2 | ... | with 2^G - 1 |
//            index:   | panel offset of a column, one for each, in units of 8 bytes |
//            values:  | popcount(pattern) weights of a column, lowest row first |
//
// so that each activation vector is loaded once and used by all rows of the pattern, and
// columns of pattern 0 are never touched.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace sparsedet {

constexpr int kVectors = 4;  // vectors a panel column
constexpr int kMaxLanes = 16;
constexpr int kMaxGroup = 6;  // rows a group, at most

// One panel times the packed weights of `groups` groups.
struct SparseArgs {
  const float* panel;
  const uint16_t* index;  // streams as drawn above, all groups one after the other
  const float* values;
  const uint16_t* counts;  // [groups][2^G - 1]
  int groups;
  int vectors;     // P, 1..kVectors
  float* partial;  // [groups][G][kVectors][L] sums between blocks; aligned
  bool first;      // start from the bias instead of `partial`
  bool last;       // finish into `out` instead of `partial`
  // Used when `first` (int8: when `last`): one value for each row, G * groups of them.
  const float* bias;
  // Used when `last`:
  const float* residual;  // added before the ReLU, or null; same strides as `out`; may be `out`
  float* out;             // row r, vector v at out + r * row_stride + offset[v]
  ptrdiff_t row_stride;   // floats
  int rows;               // rows that exist: 0 < rows <= G * groups; the others are not stored
  ptrdiff_t offset[kVectors];
  int valid[kVectors];  // lanes of each vector that exist, 1..L; the others are stored as zero
  bool relu;
  // bfloat16 only: rows of `out` and `residual` are words. Group 2h then holds the even and group
  // 2h + 1 the odd channels of G words; `groups` is even, `partial` is always given, `rows` and
  // `row_stride` count words. Otherwise rows are float32, as above.
  // int8: G is 4 and group h holds the channels of word h; `rows` and `row_stride` count words.
  bool words;
  // int8 only: what leaves is sum * scale[row] + bias[row] + residual byte * residual_scale, each
  // step fused. As words it is rounded to the nearest even and saturated to 0..255, which is the
  // ReLU, too; as float32 there is no residual.
  const float* scale;
  float residual_scale;
  // Prefetched while the kernel runs, or null: lines of `prefetch_bytes` a group.
  const char* prefetch;
  int prefetch_rows;  // rows fetched a group
  ptrdiff_t prefetch_stride;
};

// Gather `count` channels of a map into a panel.
struct PackArgs {
  const float* source[kVectors];  // first channel of each vector's first pixel; any alignment
  ptrdiff_t channel_stride;       // floats between channels
  int count;                      // channels
  int vectors;                    // 1..kVectors
  int stride;                     // 1 or 2: every or every second pixel; 2 * L floats are read
  float* panel;                   // where the first channel goes; aligned
};

// 3x3, stride 2 max pooling of one output row of one channel, or of a word's two; what is in words
// is not negative.
struct PoolArgs {
  const float* rows[4][3];  // first tap of output pixel 0 in each of the three input rows, of
                            // each channel of the output's word
  float* out;               // rounded up to whole vectors; lanes from `width` on are set to zero
  int width;                // output pixels
  float scale;              // int8: a byte is the value times this, rounded and saturated
};

// [channels][pixels] -> [pixels][pitch] of one row of a map.
struct TransposeArgs {
  const float* source;  // channel c, pixel x at source + c * channel_stride + x
  ptrdiff_t channel_stride;
  int channels;
  int pixels;
  float* out;       // pixel x, channel c at out + x * pitch + c; aligned
  ptrdiff_t pitch;  // at least channels rounded up to L; the excess up to there is set to zero
};

// Weighted sums of map cells for L regions at once, laid out with regions as lanes.
struct RoiArgs {
  const float* map;  // [cells][pitch], aligned
  bool bytes;        // int8: the map holds words; else float32, `pitch` is 4 * channels
                     // rounded up to 4 * L, and so many biases there are in either case
  float scale;       // int8: sums are multiplied by it, fused with the bias
  int channels;
  ptrdiff_t pitch;                  // channels rounded up to L
  const int32_t* cells[kMaxLanes];  // for each region: the cells of its bin ...
  const float* weights[kMaxLanes];  // ... and their weights
  int count[kMaxLanes];             // how many; 0 gives zeros
  const float* bias;  // added afterwards, or null: `pitch` values; for words `pitch` of even
                      // channels, then as many of odd ones
  bool relu;
  float* out;  // channel c at out + c * channel_stride, L lanes; aligned
  ptrdiff_t channel_stride;
};

// Multiply-adds on registers alone, as fast as the instruction set can: what everything else is
// measured against. Returns the floating-point operations done.
struct PeakArgs {
  int64_t rounds;
  float* sink;  // gets a number that depends on all of them
};

// Winograd's F(4x4, 3x3) on regions as lanes: to and from the 36 points of a tile (pack.h).
struct WinogradArgs {
  float* pixels[36];  // channel 0 of the tile's 6x6 inputs, null for zero; of its 4x4 outputs
                      // (the first 16), null for those not stored; rows one after the other
  float* points;      // point i, channel c at points + i * point_stride + c * kVectors * L
  ptrdiff_t point_stride;
  int channels;       // kVectors * L floats between two, in pixels too
  int vectors;        // 1..kVectors
  const float* bias;  // outputs only: one a channel
  bool relu;
};

// Mean over the cells of a map, regions as lanes.
struct MeanArgs {
  const float* source;  // cell i, lane l at source + i * cell_stride + l; aligned
  ptrdiff_t cell_stride;
  int cells;
  int lanes;      // a multiple of kVectors * L
  float* out[4];  // `lanes` float32 values of each channel of the word, null if there is none
  float scale;    // int8: of a byte
};

// What differs when activations and weights are words. Sums are float32, or int32.
struct WordKernels {
  bool (*supported)();
  void (*sparse[kMaxGroup + 1])(const SparseArgs&);  // by G; null where there is none
  void (*pool)(const PoolArgs&);                     // words (int8: float32) in, words out
  void (*roi)(const RoiArgs&);                       // words (int8: or float32) in, words out
  void (*mean)(const MeanArgs&);                     // words in, float32 out
  int64_t (*peak)(const PeakArgs&);
};

struct Kernels {
  const char* isa;
  int lanes;
  bool (*supported)();
  // By G; null where there is none.
  void (*sparse[kMaxGroup + 1])(const SparseArgs&);
  void (*pack)(const PackArgs&);
  void (*pool)(const PoolArgs&);
  void (*transpose)(const TransposeArgs&);
  void (*roi)(const RoiArgs&);
  void (*mean)(const MeanArgs&);
  void (*winograd_input)(const WinogradArgs&);   // pixels -> points
  void (*winograd_output)(const WinogradArgs&);  // points -> pixels
  int64_t (*peak)(const PeakArgs&);
  const WordKernels* words;  // bfloat16; null where there are none
  const WordKernels* bytes;  // int8; null where there are none
};

extern const Kernels kernels_scalar;
#if defined(__x86_64__)
extern const WordKernels kernels_avx512_bf16, kernels_avx512_vnni;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif
#if defined(__aarch64__)
extern const Kernels kernels_neon;
#endif

}  // namespace sparsedet
