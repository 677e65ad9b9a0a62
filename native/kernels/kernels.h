// The contract of the kernels. A kernel allocates nothing, starts no thread, keeps no state and
// throws nothing. The comments of its argument struct state every precondition. One source file for
// each instruction set and precision fills a table of kernels, and the object file exports its
// tables alone; list.h has them all.
//
// Glossary
//   L        lanes: floats in a vector (scalar and NEON 4, AVX2 8, AVX-512 16)
//   P        vectors of pixels (or RoIs) of one tile, at most kVectors
//   R        rows (output channels) of one tile. A tile keeps R x P sums in registers
//   row tile R neighbouring rows; the kernel computes one after the other
//   element  (packed element) 4 bytes holding 1 float32, 2 bfloat16 or 4 uint8 neighbouring
//            channels of one pixel: channels 2c (low half) and 2c + 1, or 4c (lowest byte) ..
//            4c + 3; always stored in a float array. Beyond the last channel an element holds
//            finite values, whose weights are zero. "Column", "channel" and "row" in a kernel's
//            arguments count elements: a bfloat16 column is a pair of input channels, its weight
//            a pair of weights, its product the sum of both products
//   column   one input element for each pixel: an input channel at one tap of the filter
//   int8     activations are uint8, weights -127..127, sums int32 and exact
//   panel    the activations of one tile for one block of columns:
//
//              column 0: | vector 0 | vector 1 | ... | vector kVectors-1 |
//              column 1: | vector 0 | ...
//            kVectors * L floats for each column, whatever P is; aligned to a vector
//
// Packed weights of one row tile and one block of columns. The row mask of a column has one bit for
// each of the R rows: 1 where the weight is not zero. Columns of one row mask are stored together:
//
//            counts:  | columns of row mask 1 | of row mask 2 | ... | of row mask 2^R - 1 |
//            index:   | panel offset of each column, in units of 8 bytes |
//            values:  | popcount(row mask) weights of each column, lowest row first |
//
// A kernel therefore loads each activation vector once for all rows of the mask, and never touches
// columns of row mask 0.
//
// Rowwise, which pays where few tiles are swept: row tiles of one row, those with few columns first.
// Neighbouring loops then have nearly equal lengths, which a branch predictor knows without having
// seen them before:
//
//            counts:  | row, its columns | the next row, its columns | ... |
//            index, values: one after the other, as above
//
// A matrix unit (AMX) multiplies squares of kSquare x kSquare elements and keeps the zeros. Its row
// tiles have kSquare rows; the weights of one row tile and one block of columns are
//
//            values:  | square 0: kSquare rows of kSquare elements | square 1 | ...
//
// one square for each kSquare columns, with zeros beyond the last column. 64-byte aligned.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace sparsedet {

constexpr int kVectors = 4;  // vectors in a panel column
constexpr int kMaxLanes = 16;
constexpr int kMaxTileRows = 6;
constexpr int kMaxRuns = 4;
constexpr int kSquare = 16;

// What is applied to a result, element by element. No step can be fused with another one, so that
// all kernels give equal bits:
//   relu         max(x, 0)
//   hardsigmoid  clip(x + 3, 0, 6) * (1 / 6)
//   hardswish    x * hardsigmoid(x)
//   relu6        clip(x, 0, 6)
// The others are polynomials, which scalar.cpp specifies step by step: what it fuses all fuse.
//   sigmoid      1 / (1 + exp(-x))
//   silu         x * sigmoid(x)
//   gelu         x * (1 + erf(x / sqrt(2))) / 2, up to 4e-7 times the larger of 1 and |x|
enum class Activation { none, relu, hardswish, hardsigmoid, relu6, sigmoid, silu, gelu };

// A vector of pixels that takes them from several rows of a feature map: runs of lanes, each of them
// neighbours in one row.
struct LaneRuns {
  int count;                   // 1..kMaxRuns
  int end[kMaxRuns];           // run k has the lanes [end[k - 1], end[k]), the first one from 0 on
  ptrdiff_t offset[kMaxRuns];  // lane 0 of run k, were it there: floats from a base
};

// One panel times the packed weights of `row_tiles` row tiles.
struct SparseArgs {
  const float* panel;
  const uint16_t* index;  // streams as drawn above, one row tile after the other
  const float* values;
  const uint16_t* counts;  // [row_tiles][2^R - 1]; rowwise: [row_tiles][2]
  int columns;             // of the panel; read by matrix kernels only
  int row_tiles;           // matrix kernels: even
  int vectors;             // P, 1..kVectors
  float*
      partial;  // [row_tiles][R][kVectors][L] sums between blocks; aligned. Matrix kernels use it
                // in every case
  bool first;   // start from the bias instead of `partial`
  bool last;    // finish into `out` instead of `partial`
  // Read when `first` (int8: when `last`): one value for each row, R * row_tiles values.
  const float* bias;
  // Read when `last`:
  const float* residual;  // added before the activation, or null; strides as `out`; may be `out`
  bool residual_last;     // it is added after the activation: relu, silu or gelu
  float* out;             // row r, vector v at out + r * row_stride + offset[v]
  ptrdiff_t row_stride;   // floats
  int rows;               // rows to store: 0 < rows <= R * row_tiles
  ptrdiff_t offset[kVectors];
  int valid[kVectors];   // lanes of each vector that exist, 1..L; the others are stored as zero, of
                         // a packed result of int8 as `outside`
  const LaneRuns* runs;  // [P], or null. Given: instead of `offset` and `valid`, from `out` on; a
                         // lane without a run is not stored
  Activation activation;
  // Whether the rows of `out` and `residual` are packed elements instead of float32; always false
  // for float32. `rows` and `row_stride` then count elements.
  // bfloat16: row tile 2h holds the even and row tile 2h + 1 the odd channels of R elements;
  // `row_tiles` is even and `partial` always given.
  // int8: R is 4 and row tile h holds the channels of element h; of a matrix kernel, row tile h
  // holds those of elements 4h .. 4h + 3.
  bool packed_output;
  // int8 only: the result is sum * scale[row] + bias[row] + residual byte * residual_scale, each
  // step fused; a float32 result has no residual. A packed result is rounded to nearest even and
  // saturated to 0..255. Where `out_scale` is 0, the steps give bytes as they are, and saturating
  // them is the ReLU as well. Else the result is activated, the residual added then if it comes
  // last, and it becomes result * out_scale + out_zero, fused.
  const float* scale;
  float residual_scale;
  float out_scale, out_zero;
  float outside;  // the element whose bytes are zero points
  // Address to prefetch while the kernel runs, or null. For each row tile: `prefetch_rows` lines of
  // P vectors, `prefetch_stride` bytes apart.
  const char* prefetch;
  int prefetch_rows;
  ptrdiff_t prefetch_stride;
};

// Gathers `count` channels of a feature map into a panel.
struct PackArgs {
  const float* source[kVectors];  // first channel of each vector's first pixel; any alignment
  const LaneRuns* runs;      // [vectors], or null. Given: from source[0] on, lane i is i * stride
                             // floats behind lane 0
  ptrdiff_t channel_stride;  // floats between channels
  int count;                 // channels
  int vectors;               // 1..kVectors
  int stride;                // 1 or 2: every or every second pixel; 2 * L floats are read
  float* panel;              // where the first channel goes; aligned
};

// A depthwise convolution: some output rows of one element, each of whose channels reads the same
// channel of the input. A sum takes its taps column by column of the filter, from top to bottom.
struct DepthwiseArgs {
  const float* source;   // first tap of output pixel 0 of the first row; any alignment
  ptrdiff_t row_stride;  // floats from one row of taps to the next
  ptrdiff_t tap_stride;  // floats from one tap of a row to the next
  int kernel_height, kernel_width;
  int stride;                             // 1 or 2
  int rows;                               // output rows
  ptrdiff_t source_stride;                // floats between the first taps of two output rows
  ptrdiff_t out_stride, residual_stride;  // floats between two rows
  const float* weights;   // [channels of the element][kernel_height][kernel_width] float32
  const float* bias;      // [channels of the element]
  const float* residual;  // added before the activation, or null; may be `out`
  float* out;             // rounded up to whole vectors; lanes from `width` on are set to zero
  int width;              // output pixels
  Activation activation;
};

// Shares that sum to 1, of each lane by itself: exp of the values, divided by its sum.
struct SoftmaxArgs {
  float* values;  // [rows][kVectors][L], in place; aligned
  int rows;
};

// Sums over some rows of one element.
struct SumsArgs {
  const float* source;   // each row is rounded up to whole vectors; zero from `width` on
  ptrdiff_t row_stride;  // floats between two rows
  int rows, width;       // pixels
  double* sums;  // [channels of the element][2]: adds the sum of the values, and of their squares
};

// One row of one element: value * factor + offset, then the activation.
struct AffineArgs {
  const float* source;
  float*
      out;    // may be `source`; rounded up to whole vectors; lanes from `width` on are set to zero
  int width;  // pixels
  const float *factor, *offset;  // [channels of the element]
  Activation activation;
};

// float32 -> int8: one row of one element. Each value becomes value * factor + offset, fused, rounded
// to nearest even and saturated to 0..255.
struct QuantiseArgs {
  const float* source[4];  // of each channel; rounded up to whole vectors
  float* out;  // rounded up to whole vectors; lanes from `width` on are set to `outside`
  int width;   // pixels
  float factor, offset;
  float outside;
};

// int8 -> float32: one row of one element. Each byte becomes (byte - zero_point) * scale.
struct DequantiseArgs {
  const float* source;  // rounded up to whole vectors
  float* out[4];        // of each channel, or null; lanes from `width` on are set to zero
  int width;            // pixels
  int zero_point;
  float scale;
};

// 3x3 max pooling of stride 2: one output row of one element. Values in packed elements are not
// negative.
struct PoolArgs {
  const float* rows[4][3];  // first tap of output pixel 0 in each of the three input rows, for
                            // each input of the output element (one, int8: four)
  float* out;               // rounded up to whole vectors; lanes from `width` on are set to zero
  int width;                // output pixels
  float scale;              // int8: the output is the value times this, rounded and saturated
};

// [channels][pixels] -> [pixels][pitch] of one row of a feature map.
struct TransposeArgs {
  const float* source;  // channel c, pixel x at source + c * channel_stride + x
  ptrdiff_t channel_stride;
  int channels;
  int pixels;
  float* out;       // pixel x, channel c at out + x * pitch + c; aligned
  ptrdiff_t pitch;  // at least `channels` rounded up to L; set to zero from `channels` up to there
};

// RoIAlign of one bin of L RoIs: weighted sums of the cells of a feature map, RoIs as lanes.
struct RoiArgs {
  const float* map;  // [cells][pitch], aligned
  bool int8_map;     // int8: the map holds packed elements; else it is float32, and `pitch` is
                     // 4 * channels rounded up to 4 * L. `bias` has 4 values a channel either way
  float scale;       // int8: factor of the sums, fused with adding the bias
  int channels;
  ptrdiff_t pitch;                  // channels rounded up to L
  const int32_t* cells[kMaxLanes];  // for each RoI: the cells of its bin ...
  const float* weights[kMaxLanes];  // ... and their weights
  int count[kMaxLanes];             // number of cells; 0 gives zeros
  const float* bias;  // added to the sums, or null: `pitch` values; bfloat16: `pitch` values of
                      // the even channels, then as many of the odd ones
  bool relu;
  float* out;  // channel c at out + c * channel_stride, L lanes; aligned
  ptrdiff_t channel_stride;
};

// Multiply-adds on registers alone, at the highest rate of the instruction set: the reference for
// every measured rate. Returns the number of floating-point operations.
struct PeakArgs {
  int64_t rounds;
  float* sink;  // receives a value that depends on all operations, so that none is optimised away
};

// Winograd's F(4x4, 3x3) with RoIs as lanes: transforms to and from the 36 points of a Winograd
// tile (pack.h).
struct WinogradArgs {
  float* pixels[36];  // channel 0 of the 6x6 inputs, null for zero; or of the 4x4 outputs (the
                      // first 16), null where nothing is stored; row by row
  float* points;      // point i, channel c at points + i * point_stride + c * kVectors * L
  ptrdiff_t point_stride;
  int channels;       // kVectors * L floats apart, also in `pixels`
  int vectors;        // 1..kVectors
  const float* bias;  // outputs only: one value for each channel
  bool relu;
};

// Mean over the cells of each RoI's feature map, RoIs as lanes.
struct MeanArgs {
  const float* source;  // cell i, lane l at source + i * cell_stride + l; aligned
  ptrdiff_t cell_stride;
  int cells;
  int lanes;      // a multiple of kVectors * L
  float* out[4];  // `lanes` float32 values for each channel of the element; null: no such channel
  float scale;    // int8: scale of the input bytes
};

// The kernels that differ where activations and weights are bfloat16 or int8. Sums are float32, or
// int32.
struct LowPrecisionKernels {
  int lanes;
  int tile_rows;  // R for which weights are packed
  bool (*supported)();
  void (*sparse[kMaxTileRows + 1])(const SparseArgs&);  // by R; null: not compiled
  void (*pool)(const PoolArgs&);                        // packed (int8: float32) in, packed out
  void (*roi)(const RoiArgs&);                          // packed (int8: or float32) in, packed out
  void (*mean)(const MeanArgs&);                        // packed in, float32 out
  void (*depthwise)(const DepthwiseArgs&);              // packed in and out; int8: null
  void (*sums)(const SumsArgs&);                        // packed in; int8: null
  void (*affine)(const AffineArgs&);                    // packed in and out; int8: null
  int64_t (*peak)(const PeakArgs&);
  void (*quantise)(const QuantiseArgs&);  // int8 alone, as the next one
  void (*dequantise)(const DequantiseArgs&);
  // int8: most that |w0| + |w1| and |w2| + |w3| of a packed weight may be, as the kernel would
  // overflow; a column whose weights are larger is packed twice, with a part of them each. 0: any.
  int pair_limit = 0;
};

struct Float32Kernels {
  int lanes;
  int tile_rows;  // R for which weights are packed
  bool (*supported)();
  void (*sparse[kMaxTileRows + 1])(const SparseArgs&);  // by R; null: not compiled
  void (*rowwise)(const SparseArgs&);
  int rowwise_pixels;  // of the largest feature map where it is faster than sparse[tile_rows]
  void (*pack)(const PackArgs&);
  void (*pool)(const PoolArgs&);
  void (*transpose)(const TransposeArgs&);
  void (*roi)(const RoiArgs&);
  void (*mean)(const MeanArgs&);
  void (*depthwise)(const DepthwiseArgs&);
  void (*sums)(const SumsArgs&);
  void (*affine)(const AffineArgs&);
  void (*softmax)(const SoftmaxArgs&);
  void (*winograd_input)(const WinogradArgs&);   // pixels -> points
  void (*winograd_output)(const WinogradArgs&);  // points -> pixels
  int64_t (*peak)(const PeakArgs&);
  // Loads vectors from the first-level cache, as fast as it can; returns their number.
  int64_t (*loads)(const PeakArgs&);
};

// The dense product of a matrix unit, in bfloat16 or int8.
struct MatrixKernels {
  bool (*supported)();
  // A thread calls this before its first product, and the other one after the last one. In between
  // it runs nothing that uses the matrix unit otherwise.
  void (*prepare_thread)();
  void (*release_thread)();
  void (*product)(const SparseArgs&);
  int64_t (*peak)(const PeakArgs&);  // prepares and releases the thread by itself
  double rate;                       // its peak over that of the set's vector kernels
};

// All tables of an instruction set; dispatch.h has them. Their lanes are equal.
struct Kernels : Float32Kernels {
  const char* isa;
  // Null: not compiled, or this CPU does not support them.
  const LowPrecisionKernels *bf16, *int8;
  const MatrixKernels *bf16_matrix, *int8_matrix;
};

}  // namespace sparsedet
