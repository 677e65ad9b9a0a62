// Python's dictionary of an operation -> OperationSpec: all fields are checked here, once.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <initializer_list>
#include <set>

#include "bindings/bindings.h"

namespace nb = nanobind;

namespace sparsedet {

namespace {

// Reads fields by name; none may have another type or be left at the end, and none but flags may be
// missing.
class Fields {
 public:
  explicit Fields(nb::dict values) : values_(std::move(values)) {}

  template <class T>
  T get(const char* key) {
    read_.insert(key);
    T out;
    if (!values_.contains(key) || !nb::try_cast(values_[key], out))
      throw std::invalid_argument(std::string(key) + " is missing or has the wrong type");
    return out;
  }
  bool has(const char* key) const { return values_.contains(key); }
  // False if it is missing.
  bool flag(const char* key) { return values_.contains(key) && get<bool>(key); }
  int integer(const char* key, int least, int most = 1 << 24) {
    const int value = get<int>(key);
    if (value < least || value > most)
      throw std::invalid_argument(std::string(key) + " is " + std::to_string(value) +
                                  ", expected " + std::to_string(least) + ".." +
                                  std::to_string(most));
    return value;
  }
  // Index of the value among `choices`.
  int choice(const char* key, std::initializer_list<const char*> choices) {
    const auto value = get<std::string>(key);
    int i = 0;
    for (const char* name : choices) {
      if (value == name) return i;
      i++;
    }
    throw std::invalid_argument(std::string(key) + ": unknown value '" + value + "'");
  }
  ElementType type(const char* key) {
    constexpr ElementType types[] = {ElementType::float32, ElementType::bfloat16,
                                     ElementType::int8};
    return types[choice(key, {"f32", "bf16", "int8"})];
  }
  // Scale and zero point; {} if there are none.
  std::optional<Quantization> quantization() {
    if (!has("quantization")) return {};
    const auto [scale, zero_point] = get<std::pair<float, int>>("quantization");
    if (!(scale > 0 && scale < 3e38f) || zero_point < 0 || zero_point > 255)
      throw std::invalid_argument("quantization is out of range");
    return Quantization{scale, zero_point};
  }
  void padding(int (&to)[4]) {
    const auto sides = get<std::array<int, 4>>("padding");
    for (int i = 0; i < 4; i++)
      if (sides[i] < -64 || sides[i] > 64) throw std::invalid_argument("padding is out of range");
    std::copy(sides.begin(), sides.end(), to);
  }
  Activation activation() {
    constexpr Activation all[] = {Activation::none,        Activation::relu,  Activation::hardswish,
                                  Activation::hardsigmoid, Activation::relu6, Activation::sigmoid,
                                  Activation::silu,        Activation::gelu};
    return all[choice("activation", {"none", "relu", "hardswish", "hardsigmoid", "relu6", "sigmoid",
                                     "silu", "gelu"})];
  }
  void finish() const {
    for (auto [key, value] : values_) {
      std::string name;
      if (!nb::try_cast(key, name) || !read_.count(name))
        throw std::invalid_argument("unknown field '" + name + "'");
    }
  }

 private:
  nb::dict values_;
  std::set<std::string> read_;
};

NormaliseAttributes normalise(Fields& f) {
  NormaliseAttributes a{};
  const auto mean = f.get<std::array<float, 3>>("mean"), std = f.get<std::array<float, 3>>("std");
  std::copy(mean.begin(), mean.end(), a.mean);
  std::copy(std.begin(), std.end(), a.std);
  a.rgb = f.flag("rgb");
  a.pixel_pairs = f.type("type") == ElementType::bfloat16;
  return a;
}

ConvolutionAttributes convolution(Fields& f) {
  ConvolutionAttributes a{};
  a.in_channels = f.integer("in_channels", 1);
  a.out_channels = f.integer("out_channels", 1);
  const auto kernel = f.get<std::array<int, 2>>("kernel");
  for (int i = 0; i < 2; i++) {
    if (kernel[i] < 1 || kernel[i] > 64) throw std::invalid_argument("kernel is out of range");
    a.kernel[i] = kernel[i];
  }
  f.padding(a.padding);
  a.stride = f.integer("stride", 1, 2);
  a.dilation = f.integer("dilation", 1, 64);
  a.groups = f.integer("groups", 1);
  a.activation = f.activation();
  a.residual_last = f.flag("residual_last");
  a.float32_output = f.type("type") == ElementType::float32;
  a.quantization = f.quantization().value_or(Quantization{});
  return a;
}

MaxPoolAttributes max_pool(Fields& f) {
  MaxPoolAttributes a{};
  a.negative = f.flag("negative");
  a.kernel = f.integer("kernel", 1, 64);
  a.stride = f.integer("stride", 1, 64);
  f.padding(a.padding);
  a.type = f.type("type");
  a.quantization = f.quantization().value_or(Quantization{});
  return a;
}

ConvertAttributes convert(Fields& f) {
  ConvertAttributes a{};
  a.first = f.has("first") ? f.integer("first", 0) : 0;
  a.channels = f.has("channels") ? f.integer("channels", 1) : 0;
  a.to = {f.type("type"), f.quantization().value_or(Quantization{})};
  return a;
}

AveragePoolAttributes average_pool(Fields& f) {
  AveragePoolAttributes a{};
  a.kernel = f.integer("kernel", 1, 64);
  a.stride = f.integer("stride", 1, 64);
  f.padding(a.padding);
  a.count_padding = f.get<bool>("count_padding");
  return a;
}

GroupNormAttributes group_norm(Fields& f) {
  GroupNormAttributes a{};
  a.groups = f.integer("groups", 1);
  a.eps = f.get<float>("eps");
  if (!(a.eps >= 0)) throw std::invalid_argument("eps is negative");
  a.activation = f.activation();
  return a;
}

RoiAlignAttributes roi_align(Fields& f) {
  RoiAlignAttributes a{};
  a.scales = f.get<std::vector<float>>("scales");
  a.size = f.integer("size", 1, 256);
  a.sampling_ratio = f.integer("sampling_ratio", 0, 64);
  a.step = f.integer("step", 1, 64);
  constexpr RoiSampling samplings[] = {RoiSampling::aligned, RoiSampling::legacy,
                                       RoiSampling::corners};
  a.sampling = samplings[f.choice("sampling", {"aligned", "legacy", "corners"})];
  a.canonical_size = f.get<float>("canonical_size");
  a.canonical_level = f.integer("canonical_level", 0, 64);
  a.first_level = f.integer("first_level", 0, 64);
  a.type = f.type("type");
  a.quantization = f.quantization();
  a.relu = f.choice("activation", {"none", "relu"}) == 1;
  return a;
}

Box box(const std::vector<float>& values) {
  if (values.size() != 4) throw std::invalid_argument("a box has four numbers");
  return {values[0], values[1], values[2], values[3]};
}

// Of each level.
std::vector<int> strides_of(Fields& f, size_t levels, const char* other) {
  const auto strides = f.get<std::vector<int>>("strides");
  if (levels != strides.size())
    throw std::invalid_argument(std::string(other) + " and strides differ in length");
  for (int stride : strides)
    if (stride < 0 || stride > 1 << 11) throw std::invalid_argument("strides are out of range");
  return strides;
}

std::vector<AnchorLevel> anchor_levels(Fields& f) {
  const auto anchors = f.get<std::vector<std::vector<std::vector<float>>>>("cell_anchors");
  const auto strides = strides_of(f, anchors.size(), "cell_anchors");
  std::vector<AnchorLevel> levels;
  for (size_t i = 0; i < anchors.size(); i++) {
    levels.push_back({{}, strides[i]});
    for (const auto& anchor : anchors[i])
      levels[i].cell_anchors.push_back(box(anchor));
  }
  return levels;
}

ProposalsAttributes proposals(Fields& f) {
  ProposalsAttributes a{};
  a.levels = anchor_levels(f);
  a.box_weights = box(f.get<std::vector<float>>("box_weights"));
  a.delta_clamp = f.get<float>("delta_clamp");
  a.pre_nms = f.integer("pre_nms", 1);
  a.count = f.integer("count", 1);
  a.nms_threshold = f.get<float>("nms_threshold");
  a.remove_empty = f.get<bool>("remove_empty");
  a.min_size = f.get<float>("min_size");
  a.inclusive = f.get<bool>("inclusive");
  a.score_threshold = f.get<float>("score_threshold");
  return a;
}

DetectionsAttributes detections(Fields& f) {
  DetectionsAttributes a{};
  a.num_classes = f.integer("num_classes", 1);
  a.background = f.choice("background", {"first", "last"}) ? Background::last : Background::first;
  a.background_deltas = f.get<bool>("background_deltas");
  a.box_weights = box(f.get<std::vector<float>>("box_weights"));
  a.delta_clamp = f.get<float>("delta_clamp");
  a.score_threshold = f.get<float>("score_threshold");
  a.nms_threshold = f.get<float>("nms_threshold");
  a.max_detections = f.integer("max_detections", 1);
  a.min_size = f.get<float>("min_size");
  return a;
}

RetinaNetAttributes retinanet_detections(Fields& f) {
  RetinaNetAttributes a{};
  a.num_classes = f.integer("num_classes", 1);
  a.levels = anchor_levels(f);
  a.box_weights = box(f.get<std::vector<float>>("box_weights"));
  a.delta_clamp = f.get<float>("delta_clamp");
  a.pre_nms = f.integer("pre_nms", 1);
  a.score_threshold = f.get<float>("score_threshold");
  a.nms_threshold = f.get<float>("nms_threshold");
  a.max_detections = f.integer("max_detections", 1);
  a.clip_first = f.get<bool>("clip_first");
  return a;
}

CellAttributes cell_detections(Fields& f) {
  CellAttributes a{};
  a.num_classes = f.integer("num_classes", 1);
  a.strides = f.get<std::vector<int>>("strides");
  a.strides = strides_of(f, a.strides.size(), "inputs");
  constexpr CellBoxes kinds[] = {CellBoxes::distances, CellBoxes::centre, CellBoxes::anchor};
  a.boxes = kinds[f.choice("boxes", {"distances", "centre", "anchor"})];
  a.bins = f.integer("bins", 1, 256);
  a.anchors = f.get<std::vector<std::array<float, 2>>>("anchors");
  if (a.anchors.size() != (a.boxes == CellBoxes::anchor ? a.strides.size() : 0))
    throw std::invalid_argument("anchors and strides differ in length");
  a.offset = f.get<float>("offset");
  a.objectness = f.get<bool>("objectness");
  a.several_labels = f.get<bool>("several_labels");
  a.pre_nms = f.integer("pre_nms", 1);
  a.score_threshold = f.get<float>("score_threshold");
  a.nms_threshold = f.get<float>("nms_threshold");
  a.max_detections = f.integer("max_detections", 1);
  return a;
}

FcosAttributes fcos_detections(Fields& f) {
  FcosAttributes a{};
  a.num_classes = f.integer("num_classes", 1);
  const auto sizes = f.get<std::vector<float>>("sizes");
  const auto strides = strides_of(f, sizes.size(), "sizes");
  for (size_t i = 0; i < sizes.size(); i++)
    a.levels.push_back({sizes[i], strides[i]});
  a.pre_nms = f.integer("pre_nms", 1);
  a.score_threshold = f.get<float>("score_threshold");
  a.nms_threshold = f.get<float>("nms_threshold");
  a.max_detections = f.integer("max_detections", 1);
  return a;
}

}  // namespace

OperationSpec to_spec(nb::dict values) {
  Fields fields(values);
  OperationSpec spec;
  spec.name = fields.get<std::string>("name");
  try {
    spec.inputs = fields.get<std::vector<std::string>>("inputs");
    const auto kind = fields.get<std::string>("kind");
    if (kind == "normalise")
      spec.attributes = normalise(fields);
    else if (kind == "conv")
      spec.attributes = convolution(fields);
    else if (kind == "max_pool")
      spec.attributes = max_pool(fields);
    else if (kind == "group_norm")
      spec.attributes = group_norm(fields);
    else if (kind == "activate")
      spec.attributes = ActivateAttributes{fields.activation()};
    else if (kind == "multiply")
      spec.attributes = MultiplyAttributes{};
    else if (kind == "mean")
      spec.attributes = MeanAttributes{};
    else if (kind == "resize")
      spec.attributes =
          ResizeAttributes{fields.has("factor") ? fields.integer("factor", 0, 64) : 0};
    else if (kind == "average_pool")
      spec.attributes = average_pool(fields);
    else if (kind == "affine")
      spec.attributes = AffineAttributes{fields.activation()};
    else if (kind == "add")
      spec.attributes = AddAttributes{fields.activation()};
    else if (kind == "convert")
      spec.attributes = convert(fields);
    else if (kind == "concat")
      spec.attributes = ConcatAttributes{};
    else if (kind == "shuffle")
      spec.attributes = ShuffleAttributes{fields.integer("groups", 1)};
    else if (kind == "attention")
      spec.attributes = AttentionAttributes{fields.integer("heads", 1), fields.integer("key", 1),
                                            fields.get<float>("score_scale")};
    else if (kind == "cell_detections")
      spec.attributes = cell_detections(fields);
    else if (kind == "slice")
      spec.attributes = SliceAttributes{fields.integer("first", 0), fields.integer("channels", 1)};
    else if (kind == "depth_to_space")
      spec.attributes = DepthToSpaceAttributes{fields.integer("block", 1, 64)};
    else if (kind == "masks")
      spec.attributes = MasksAttributes{fields.get<bool>("background")};
    else if (kind == "roi_align")
      spec.attributes = roi_align(fields);
    else if (kind == "proposals")
      spec.attributes = proposals(fields);
    else if (kind == "detections")
      spec.attributes = detections(fields);
    else if (kind == "retinanet_detections")
      spec.attributes = retinanet_detections(fields);
    else if (kind == "fcos_detections")
      spec.attributes = fcos_detections(fields);
    else
      throw std::invalid_argument("unknown kind '" + kind + "'");
    fields.finish();
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(spec.name + ": " + error.what());
  }
  return spec;
}

}  // namespace sparsedet
