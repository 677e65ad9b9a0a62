// Convolutions on both layouts by the sparse kernels or the matrix unit, without a transform: the
// way that most run. And the convolution that an algorithm makes of it.
#pragma once
#include "algorithms/algorithm.h"
#include "tensors/layout.h"

namespace sparsedet {

// residual: added before the ReLU, or null; may be `out`.
void conv_map(Context& context, const PackedConv& conv, const FeatureMap& in,
              const FeatureMap* residual, const FeatureMap& out);

// count: RoIs in all blocks.
void conv_rois(Context& context, const PackedConv& conv, const Rois& in, const Rois* residual,
               const Rois& out, int count);

// One unit of work of conv_rois: a chunk of rows at positions [first, last), which count the output
// cells of all blocks of RoIs.
void conv_rois_unit(Context& context, const PackedConv& conv, const Rois& in, const Rois* residual,
                    const Rois& out, int count, int worker, int chunk, int first, int last);

class DirectConvolution : public PackedConvolution {
 public:
  explicit DirectConvolution(PackedConv conv) : conv_(std::move(conv)) {}
  std::vector<std::span<const std::byte>> packed() const override { return {conv_.packed}; }
  int64_t nonzero_elements() const override { return sparsedet::nonzero_elements(conv_); }
  size_t bytes() const override { return conv_.bytes(); }
  void run(Context& context, const FeatureMap& in, const FeatureMap* residual,
           const FeatureMap& out) const override {
    conv_map(context, conv_, in, residual, out);
  }
  void run(Context& context, const Rois& in, const Rois* residual, const Rois& out, int count,
           float* /*scratch*/) const override {
    conv_rois(context, conv_, in, residual, out, count);
  }

 private:
  PackedConv conv_;
};

}  // namespace sparsedet
