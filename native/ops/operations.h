// All kinds of operations, and the one struct in which an operation comes from outside.
#pragma once
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "ops/activate.h"
#include "ops/add.h"
#include "ops/affine.h"
#include "ops/attention.h"
#include "ops/cell_detections.h"
#include "ops/concat.h"
#include "ops/convert.h"
#include "ops/convolution.h"
#include "ops/depth_to_space.h"
#include "ops/detections.h"
#include "ops/fcos_detections.h"
#include "ops/group_norm.h"
#include "ops/masks.h"
#include "ops/mean.h"
#include "ops/multiply.h"
#include "ops/normalise.h"
#include "ops/pool.h"
#include "ops/proposals.h"
#include "ops/resize.h"
#include "ops/retinanet_detections.h"
#include "ops/roi_align.h"
#include "ops/shuffle.h"
#include "ops/slice.h"

namespace sparsedet {

struct MeanAttributes {};

using Attributes =
    std::variant<NormaliseAttributes, ConvolutionAttributes, MaxPoolAttributes, GroupNormAttributes,
                 ActivateAttributes, MultiplyAttributes, MeanAttributes, ResizeAttributes,
                 SliceAttributes, DepthToSpaceAttributes, RoiAlignAttributes, ProposalsAttributes,
                 DetectionsAttributes, RetinaNetAttributes, FcosAttributes, MasksAttributes,
                 AddAttributes, AffineAttributes, ConcatAttributes, AveragePoolAttributes,
                 CellAttributes, ShuffleAttributes, AttentionAttributes, ConvertAttributes>;

struct OperationSpec {
  std::string name;                 // of the operation and of the value that it makes
  std::vector<std::string> inputs;  // names of values; "image" is the network input
  Attributes attributes;
};

}  // namespace sparsedet
