// Parts of packing and unpacking: how a convolution is cut, and where its bytes lie. Only for the
// files of this folder that make a PackedConv.
#pragma once
#include "algorithms/pack.h"

namespace sparsedet {

// A convolution without its streams: blocks, chunks and bias.
PackedConv cut_conv(const Kernels& kernels, const ConvShape& shape, const float* bias,
                    bool split_taps, PackedLayout layout = PackedLayout::row_masks);

// Distance between two columns of a panel, in units of 8 bytes.
inline int index_step(const Kernels& kernels) {
  return kVectors * kernels.lanes * static_cast<int>(sizeof(float)) / 8;
}

// Number of columns and weights of one row tile and block.
struct Extent {
  size_t columns = 0, weights = 0;
};

// Sizes of the counts, of counts and indices, and of all packed bytes of a convolution. The last
// two are padded to multiples of 64 bytes, so that what follows is aligned.
size_t counts_bytes(const PackedConv& conv);
size_t index_bytes(const PackedConv& conv, size_t columns);
size_t packed_bytes(const PackedConv& conv, Extent e);

// Sets the spans of the streams from the counts at the beginning of `bytes`, and shortens `bytes`
// to this convolution. False if it is longer than `bytes`.
bool set_streams(PackedConv& conv, std::span<const std::byte>& bytes);

}  // namespace sparsedet
