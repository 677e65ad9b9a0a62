// Executor::add: operations of all kinds, with their weights.
#include <stdexcept>

#include "graph/executor.h"

namespace sparsedet {

namespace {

// The scales of a group norm or affine operation, whose offsets are there, too.
std::vector<float> scales_of(const Weights* weights, const std::vector<float>* offsets) {
  if (!weights || !weights->dense || !offsets)
    throw std::invalid_argument("needs scales and offsets");
  return {weights->dense, weights->dense + weights->count};
}

template <class... Cases>
struct Overloaded : Cases... {
  using Cases::operator()...;
};
template <class... Cases>
Overloaded(Cases...) -> Overloaded<Cases...>;

}  // namespace

std::vector<int> Executor::begin(const OperationSpec& spec) const {
  if (shared_nodes_.use_count() > 1)
    throw std::invalid_argument("another executor shares the operations: they cannot change");
  if (spec.name.empty() || spec.name == "image")
    throw std::invalid_argument("an operation cannot be named '" + spec.name + "'");
  for (const Node& node : nodes_)
    if (node.name == spec.name)
      throw std::invalid_argument("there are two operations '" + spec.name + "'");
  std::vector<int> inputs;
  for (const std::string& name : spec.inputs)
    inputs.push_back(value_of(name));
  return inputs;
}

void Executor::append(const OperationSpec& spec, const std::vector<int>& inputs,
                      std::shared_ptr<const Operation> operation) {
  const auto shape = operation->shape(pick(shapes_, inputs));
  const auto format = operation->format(pick(formats_, inputs));
  const bool pairs = format.type == ElementType::bfloat16 || format.type == ElementType::pixels;
  if ((pairs && !kernels_.bf16) || (format.type == ElementType::int8 && !kernels_.int8))
    throw std::invalid_argument(std::string("there are no kernels of that type with '") +
                                kernels_.isa + "'");
  shapes_.push_back(shape);
  formats_.push_back(format);
  nodes_.push_back({spec.name, inputs, std::move(operation)});
  height_ = width_ = 0;
}

void Executor::add(const OperationSpec& spec, const Weights* weights,
                   const std::vector<float>* bias, const std::string& algorithm,
                   const std::string& weights_of) {
  try {
    const std::vector<int> inputs = begin(spec);
    const Packer packer{&pool_, &weights_, &pack_scratch_};
    const auto make = Overloaded{
        [&](const ConvolutionAttributes& a) -> std::shared_ptr<const Operation> {
          auto conv =
              std::make_shared<Convolution>(a, pick(shapes_, inputs), pick(formats_, inputs));
          const auto* other = weights_of.empty() ? nullptr : convolution(value_of(weights_of));
          if (other && conv->same_problem(*other)) {
            conv->share(*other);
            return conv;
          }
          if (!weights) throw std::invalid_argument("a convolution has no weights of its own");
          if (bias && bias->size() != size_t(a.out_channels))
            throw std::invalid_argument("bias has the wrong shape");
          conv->pack(kernels_, *weights, bias ? bias->data() : nullptr,
                     algorithm.empty() ? nullptr : &find_algorithm(algorithm), packer);
          return conv;
        },
        [&](const RoiAlignAttributes& a) -> std::shared_ptr<const Operation> {
          if (bias && !inputs.empty() && bias->size() != size_t(shapes_[inputs[0]].channels))
            throw std::invalid_argument("bias has the wrong shape");
          std::vector<float> own = bias ? *bias : std::vector<float>{};
          if (!bias && !inputs.empty() && a.quantization && a.quantization->zero_point)
            own.resize(shapes_[inputs[0]].channels);  // the zero point is added with the bias
          return std::make_shared<RoiAlign>(kernels_, a, std::move(own));
        },
        [](const NormaliseAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<Normalise>(a);
        },
        [](const MaxPoolAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<MaxPool>(a);
        },
        [&](const GroupNormAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<GroupNorm>(a, scales_of(weights, bias), *bias);
        },
        [](const ActivateAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<Activate>(a);
        },
        [](const MultiplyAttributes&) -> std::shared_ptr<const Operation> {
          return std::make_shared<Multiply>();
        },
        [&](const MeanAttributes&) -> std::shared_ptr<const Operation> {
          return std::make_shared<Mean>(inputs.empty() ? Domain::rois : shapes_[inputs[0]].domain);
        },
        [](const ResizeAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<Resize>(a);
        },
        [](const AveragePoolAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<AveragePool>(a);
        },
        [&](const AffineAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<Affine>(a, scales_of(weights, bias), *bias);
        },
        [](const AddAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<Add>(a);
        },
        [](const ConvertAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<Convert>(a);
        },
        [](const ConcatAttributes&) -> std::shared_ptr<const Operation> {
          return std::make_shared<Concat>();
        },
        [](const ShuffleAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<Shuffle>(a);
        },
        [](const AttentionAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<Attention>(a);
        },
        [](const CellAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<CellDetections>(a);
        },
        [](const SliceAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<Slice>(a);
        },
        [](const ProposalsAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<Proposals>(a);
        },
        [](const DetectionsAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<Detections>(a);
        },
        [&](const DepthToSpaceAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<DepthToSpace>(a, pick(shapes_, inputs), pick(formats_, inputs));
        },
        [](const MasksAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<Masks>(a);
        },
        [](const RetinaNetAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<RetinaNetDetections>(a);
        },
        [](const FcosAttributes& a) -> std::shared_ptr<const Operation> {
          return std::make_shared<FcosDetections>(a);
        },
    };
    append(spec, inputs, std::visit(make, spec.attributes));
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(spec.name + ": " + error.what());
  }
}

void Executor::add_packed(const OperationSpec& spec, const PackedWeights& packed,
                          std::shared_ptr<const void> owner, const std::vector<float>* bias) {
  try {
    const auto* attributes = std::get_if<ConvolutionAttributes>(&spec.attributes);
    if (!attributes) throw std::invalid_argument("only a convolution has packed weights");
    if (bias && bias->size() != size_t(attributes->out_channels))
      throw std::invalid_argument("bias has the wrong shape");
    const std::vector<int> inputs = begin(spec);
    auto conv =
        std::make_shared<Convolution>(*attributes, pick(shapes_, inputs), pick(formats_, inputs));
    const std::span<const std::byte> bytes = packed.spans.at(0);
    if (checksum(bytes, pool_) != packed.checksum)
      throw std::invalid_argument("its packed weights are damaged");
    conv->unpack(kernels_, find_algorithm(packed.algorithm), packed.nonzero, bytes,
                 std::move(owner), bias ? bias->data() : nullptr);
    append(spec, inputs, std::move(conv));
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(spec.name + ": " + error.what());
  }
}

}  // namespace sparsedet
