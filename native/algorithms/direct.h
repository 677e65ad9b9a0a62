// Convolutions on both layouts by the sparse kernels, without a transform: the way that most run.
#pragma once
#include "algorithms/pack.h"
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

}  // namespace sparsedet
