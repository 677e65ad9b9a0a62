#include "ops/convolution.h"

#include "algorithms/pack_matrix.h"
#include "ops/rows.h"

namespace sparsedet {

namespace {

double density_of(ElementType type, int64_t nonzero, const ConvShape& shape) {
  const double density = double(nonzero) / double(shape.weights());
  return type != ElementType::float32 ? 1 - (1 - density) * (1 - density) : density;
}

// Whether every window along one axis has a tap inside the input.
bool reads_inside(int length, int out, int kernel, int stride, int before, int dilation) {
  for (int i = 0; i < out; i++) {
    int tap = 0;
    while (tap < kernel && i * stride - before + tap * dilation < 0)
      tap++;
    if (tap == kernel || i * stride - before + tap * dilation >= length) return false;
  }
  return true;
}

void check_eligible(const Algorithm& algorithm, const ConvProblem& problem) {
  if (!algorithm.eligible(problem))
    throw std::invalid_argument(std::string("algorithm '") + algorithm.name +
                                "' cannot run this operation");
}

}  // namespace

Convolution::Convolution(const ConvolutionAttributes& attributes, std::span<const Shape> shapes,
                         std::span<const Format> formats)
    : a_(attributes) {
  const Shape out = shape(shapes);
  const ElementType in = formats[0].type;
  const bool pads = *std::max_element(a_.padding, a_.padding + 4) > 0;
  if (out.domain == Domain::rois && formats[0].quantization.zero_point && pads)
    throw std::invalid_argument("on RoIs, padding is zero: int8 values must not be negative");
  if (a_.groups > 1 && (a_.groups != a_.in_channels || a_.groups != a_.out_channels))
    throw std::invalid_argument("has groups, but not as many as channels");
  const bool late = a_.activation == Activation::relu || a_.activation == Activation::silu ||
                    a_.activation == Activation::gelu;
  if (a_.residual_last && (!late || a_.groups > 1))
    throw std::invalid_argument("cannot add a tensor after its activation");
  if (a_.groups > 1 && (in == ElementType::int8 || in == ElementType::pixels))
    throw std::invalid_argument("a depthwise convolution reads float32 or bfloat16");
  ConvShape& s = problem_.shape;
  s.in_channels = a_.in_channels;
  s.out_channels = a_.out_channels;
  s.kernel_height = a_.kernel[0];
  s.kernel_width = a_.kernel[1];
  s.stride = a_.stride;
  s.padding_top = a_.padding[0];
  s.padding_left = a_.padding[1];
  s.activation = a_.activation;
  s.residual_last = a_.residual_last;
  s.dilation = a_.dilation;
  s.groups = a_.groups;
  s.in_type = in;
  s.out_type = a_.float32_output || in == ElementType::float32 ? ElementType::float32
               : in == ElementType::int8                       ? in
                                                               : ElementType::bfloat16;
  s.in_quantization = formats[0].quantization;
  s.out_quantization = a_.quantization;
  if (formats.size() > 1) {
    if (formats[1].type != s.out_type)
      throw std::invalid_argument("the tensor that is added has another type than the output");
    if (in == ElementType::int8 && s.out_type != in)
      throw std::invalid_argument("reads int8: nothing is added to a float32 output");
    s.residual_quantization = formats[1].quantization;
  }
  if (in == ElementType::pixels && (s.stride % 2 || s.dilation != 1))
    throw std::invalid_argument("bfloat16 needs an even stride here");
  problem_.rois = out.domain == Domain::rois;
  problem_.residual = shapes.size() > 1;
  problem_.in_height = shapes[0].height;
  problem_.in_width = shapes[0].width;
  problem_.out_height = out.height;
  problem_.out_width = out.width;
}

void Convolution::pack(const Kernels& kernels, const Weights& weights, const float* bias,
                       const Algorithm* algorithm, Packer packer) {
  const ConvShape& shape = problem_.shape;
  problem_.matrix = matrix_kernels(kernels, shape.in_type);
  problem_.rowwise_pixels = kernels.rowwise_pixels;
  nonzero_ = weights.nonzero(shape.weights(), *packer.pool);
  element_density_ = density_of(shape.in_type, nonzero_, shape);
  const bool int8 = shape.in_type == ElementType::int8;
  algorithm_ = algorithm ? algorithm
               : int8    ? &find_algorithm("sparse")
                         : &choose_algorithm(problem_, element_density_);
  check_eligible(*algorithm_, problem_);
  packed_ = algorithm_->pack(kernels, problem_, weights, bias, packer);
  if (!int8) return;
  // Whether zeros come in blocks shows only in the packed weights.
  const double elements = double(element_count(shape.in_type, shape.channels_read())) *
                          shape.taps() * shape.out_channels;
  element_density_ = double(packed_->nonzero_elements()) / elements;
  const Algorithm& better = choose_algorithm(problem_, element_density_);
  if (algorithm || &better == algorithm_) return;
  algorithm_ = &better;
  packed_ = algorithm_->pack(kernels, problem_, weights, bias, packer);
}

void Convolution::unpack(const Kernels& kernels, const Algorithm& algorithm, int64_t nonzero,
                         std::span<const std::byte> packed, std::shared_ptr<const void> owner,
                         const float* bias) {
  problem_.matrix = matrix_kernels(kernels, problem_.shape.in_type);
  problem_.rowwise_pixels = kernels.rowwise_pixels;
  nonzero_ = nonzero;
  element_density_ = density_of(problem_.shape.in_type, nonzero_, problem_.shape);
  algorithm_ = &algorithm;
  check_eligible(algorithm, problem_);
  packed_ = algorithm.unpack(kernels, problem_, packed, std::move(owner), bias);
  if (!packed.empty())
    throw std::invalid_argument("has more packed weights than the operation needs");
}

void Convolution::share(const Convolution& other) {
  problem_.matrix = other.problem_.matrix;
  problem_.rowwise_pixels = other.problem_.rowwise_pixels;
  algorithm_ = other.algorithm_;
  packed_ = other.packed_;
  nonzero_ = other.nonzero_;
  element_density_ = other.element_density_;
}

bool Convolution::same_problem(const Convolution& other) const {
  const ConvShape &s = problem_.shape, &t = other.problem_.shape;
  const auto same = [](const Quantization& x, const Quantization& y) {
    return x.scale == y.scale && x.zero_point == y.zero_point;
  };
  return s.in_channels == t.in_channels && s.out_channels == t.out_channels &&
         s.kernel_height == t.kernel_height && s.kernel_width == t.kernel_width &&
         s.stride == t.stride && s.padding_top == t.padding_top &&
         s.padding_left == t.padding_left && s.activation == t.activation &&
         s.residual_last == t.residual_last && s.dilation == t.dilation && s.groups == t.groups &&
         s.in_type == t.in_type && s.out_type == t.out_type &&
         same(s.in_quantization, t.in_quantization) &&
         same(s.out_quantization, t.out_quantization) &&
         same(s.residual_quantization, t.residual_quantization) &&
         problem_.rois == other.problem_.rois && problem_.residual == other.problem_.residual;
}

Shape Convolution::shape(std::span<const Shape> inputs) const {
  expect_count(inputs, 1, 2);
  if (inputs[0].domain != Domain::map && inputs[0].domain != Domain::rois)
    throw std::invalid_argument("a convolution reads a feature map or RoIs");
  const Shape& in = inputs[0];
  if (in.channels != a_.in_channels)
    throw std::invalid_argument("has " + std::to_string(a_.in_channels) +
                                " input channels, but its input " + std::to_string(in.channels));
  const Shape out{
      in.domain, a_.out_channels,
      output_length(in.height, a_.kernel[0], a_.stride, a_.padding[0], a_.padding[2], a_.dilation),
      output_length(in.width, a_.kernel[1], a_.stride, a_.padding[1], a_.padding[3], a_.dilation),
      in.count};
  if (in.domain == Domain::rois &&
      !(reads_inside(in.height, out.height, a_.kernel[0], a_.stride, a_.padding[0], a_.dilation) &&
        reads_inside(in.width, out.width, a_.kernel[1], a_.stride, a_.padding[1], a_.dilation)))
    throw std::invalid_argument("on RoIs, no window may lie in the padding as a whole");
  if (inputs.size() > 1 && (inputs[1].domain != out.domain || inputs[1].channels != out.channels ||
                            inputs[1].height != out.height || inputs[1].width != out.width))
    throw std::invalid_argument("the tensor that is added has another shape than the output");
  return out;
}

Needs Convolution::needs(std::span<const Shape> inputs, size_t input) const {
  if (input > 0 || inputs[0].domain != Domain::map) return {0, 0, false};
  const int border = border_needed(inputs[0].height, a_.kernel[0], a_.stride, a_.padding[0],
                                   a_.padding[2], a_.dilation);
  const int padding = std::max({a_.padding[1], a_.padding[3], 0});
  return {border, padding, border > 0 || padding > 0};
}

size_t Convolution::scratch_floats(const Value& out) const {
  return problem_.rois ? packed_->scratch_floats(out.rois) : 0;
}

void Convolution::run(Context& context, const Step& step) const {
  const Value& in = *step.inputs[0];
  const Value* residual = step.inputs.size() > 1 ? step.inputs[1] : nullptr;
  if (problem_.rois)
    return packed_->run(context, in.rois, residual ? &residual->rois : nullptr, step.out.rois,
                        step.count, step.scratch);
  const FeatureMap *added = residual ? &residual->map : nullptr, &out = step.out.map;
  if (added && (added->row() != out.row() || added->stride() != out.stride())) {
    copy_map(context, *added, out);  // a view, or one with other borders
    added = &out;
  }
  packed_->run(context, in.map, added, out);
}

}  // namespace sparsedet
