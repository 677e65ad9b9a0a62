#include "ops/depth_to_space.h"

namespace sparsedet {

DepthToSpace::DepthToSpace(const DepthToSpaceAttributes& attributes,
                           const std::vector<Shape>& inputs, const std::vector<Format>& formats)
    : a_(attributes) {
  const int channels = shape(inputs).channels;
  if (channels % channels_per_element(formats[0].type))
    throw std::invalid_argument("a cell begins inside a packed element");
}

Shape DepthToSpace::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 1, 1);
  const Shape& in = expect(inputs, 0, Domain::rois);
  const int cells = a_.block * a_.block;
  if (in.channels % cells)
    throw std::invalid_argument("the channels are not divisible by " + std::to_string(cells));
  return {Domain::rois, in.channels / cells, in.height * a_.block, in.width * a_.block, in.count};
}

// The elements of a cell lie side by side in both tensors.
void DepthToSpace::run(Context& context, const Step& step) const {
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
