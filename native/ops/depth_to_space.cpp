#include "ops/depth_to_space.h"

namespace sparsedet {

DepthToSpace::DepthToSpace(const DepthToSpaceAttributes& attributes,
                           const std::vector<Shape>& inputs, const std::vector<Format>& formats)
    : a_(attributes) {
  const int channels = shape(inputs).channels;
  if (formats[0].type == ElementType::pixels || channels % channels_per_element(formats[0].type))
    throw std::invalid_argument("a cell begins inside a packed element");
}

Shape DepthToSpace::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 1, 1);
  const Shape& in = inputs[0];
  if (in.domain != Domain::map && in.domain != Domain::rois)
    throw std::invalid_argument("channels of a feature map or RoIs become cells");
  const int cells = a_.block * a_.block;
  if (in.channels % cells)
    throw std::invalid_argument("the channels are not divisible by " + std::to_string(cells));
  return {in.domain, in.channels / cells, in.height * a_.block, in.width * a_.block, in.count};
}

void DepthToSpace::run_map(Context& context, const FeatureMap& in, const FeatureMap& out) const {
  context.pool.parallel(out.height, [&](int y, int) {
    for (int c = 0; c < out.elements(); c++) {
      float* to = out.at(y, c, 0);
      for (int j = 0; j < a_.block; j++) {
        const int part = y % a_.block * a_.block + j;
        const float* from = in.at(y / a_.block, part * out.elements() + c, 0);
        for (int x = 0; x < in.width; x++)
          to[x * a_.block + j] = from[x];
      }
      clear_excess(out, y, c);
    }
  });
}

// The elements of a cell of RoIs lie side by side in both tensors.
void DepthToSpace::run(Context& context, const Step& step) const {
  if (step.out.shape.domain == Domain::map)
    return run_map(context, step.inputs[0]->map, step.out.map);
  const Rois &in = step.inputs[0]->rois, &out = step.out.rois;
  const ptrdiff_t floats = ptrdiff_t(out.elements()) * out.lanes;
  context.pool.parallel(out.blocks * out.height, [&](int item, int) {
    const int block = item / out.height, y = item % out.height;
    for (int x = 0; x < out.width; x++) {
      const int part = y % a_.block * a_.block + x % a_.block;
      std::copy_n(in.at(block, y / a_.block, x / a_.block, 0) + part * floats, floats,
                  out.at(block, y, x, 0));
    }
  });
}

}  // namespace sparsedet
