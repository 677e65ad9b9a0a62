#include "ops/concat.h"

#include "ops/rows.h"

namespace sparsedet {

Shape Concat::shape(std::span<const Shape> inputs) const {
  Shape out = expect(inputs, 0, Domain::map);
  int64_t channels = 0;
  for (size_t i = 0; i < inputs.size(); i++) {
    const Shape& in = expect(inputs, i, Domain::map);
    if (in.height != out.height || in.width != out.width)
      throw std::invalid_argument("joins maps of different sizes");
    channels += in.channels;
  }
  if (channels > 1 << 24) throw std::invalid_argument("joins too many channels");
  out.channels = static_cast<int>(channels);
  return out;
}

Format Concat::format(std::span<const Format> inputs) const {
  for (const Format& in : inputs)
    if (!equal(in, inputs[0])) throw std::invalid_argument("joins maps of different types");
  return inputs[0];
}

namespace {

// Calls each(input, the part of the output where it belongs) for inputs that lie elsewhere.
template <class Each>
void for_copies(std::span<Value* const> inputs, const Value& out, const Each& each) {
  int first = 0;
  for (const Value* input : inputs) {
    const FeatureMap part = out.map.view(first, input->shape.channels);
    if (part.data != input->map.data) each(input->map, part);
    first += input->shape.channels;
  }
}

}  // namespace

void Concat::run(Context& context, const Step& step) const {
  for_copies(step.inputs, step.out,
             [&](const FeatureMap& in, const FeatureMap& out) { copy_map(context, in, out); });
}

size_t Concat::copied_bytes(std::span<Value* const> inputs, const Value& out) {
  size_t bytes = 0;
  for_copies(inputs, out, [&](const FeatureMap& in, const FeatureMap&) {
    bytes += size_t(in.elements()) * in.height * in.width * sizeof(float);
  });
  return bytes;
}

}  // namespace sparsedet
