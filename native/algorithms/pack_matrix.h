// A convolution ready to run by a matrix unit: weights in squares (kernels.h).
#pragma once
#include "algorithms/pack.h"

namespace sparsedet {

// The kernels of the matrix unit for a type of activations; null if there are none.
inline const MatrixKernels* matrix_kernels(const Kernels& kernels, ElementType type) {
  return type == ElementType::float32 ? nullptr
         : type == ElementType::int8  ? kernels.int8_matrix
                                      : kernels.bf16_matrix;
}

// As pack_conv and unpack_conv; zeros are kept.
PackedConv pack_matrix(const Kernels& kernels, const ConvShape& shape, const Weights& weights,
                       const float* bias, bool split_taps, Packer packer = {});
PackedConv unpack_matrix(const Kernels& kernels, const ConvShape& shape,
                         std::span<const std::byte>& packed, std::shared_ptr<const void> owner,
                         const float* bias, bool split_taps);

}  // namespace sparsedet
