#include "graph/engine.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>

#include "kernels/elements.h"

namespace sparsedet {

namespace {

int out_length(int length, const OpSpec& s) {
  const int room = length + s.padding_before + s.padding_after - s.kernel;
  return room < 0 ? 0 : room / s.stride + 1;
}

// Number of zero rows that an operation reads above or below its input.
int border_needed(int in_height, const OpSpec& s) {
  const int below =
      (out_length(in_height, s) - 1) * s.stride - s.padding_before + s.kernel - in_height;
  return std::max({s.padding_before, below, 0});
}

// Number of zeros that it reads to the left or right of a row, if a row may have any width.
int padding_needed(const OpSpec& s) {
  return std::max({s.padding_before, s.padding_after, 0});
}

template <class Pairs>
auto& find(Pairs& pairs, const std::string& name) {
  for (auto& [key, value] : pairs)
    if (key == name) return value;
  throw std::logic_error("no tensor '" + name + "'");
}

// Appends the time since its construction to a list.
class Timer {
 public:
  Timer(std::vector<std::pair<std::string, double>>& list, std::string name)
      : list_(list), name_(std::move(name)), start_(Clock::now()) {}
  ~Timer() {
    list_.emplace_back(name_, std::chrono::duration<double>(Clock::now() - start_).count());
  }

 private:
  using Clock = std::chrono::steady_clock;
  std::vector<std::pair<std::string, double>>& list_;
  std::string name_;
  Clock::time_point start_;
};

// Packs the channels of element c; value(channel) gives one channel.
template <class Value>
float join_element(ElementType type, Quantization quantization, int c, const Value& value) {
  if (type == ElementType::float32) return value(c);
  if (type == ElementType::bfloat16) return join_bfloat16(value(2 * c), value(2 * c + 1));
  uint32_t bytes[4];
  for (int i = 0; i < 4; i++)
    bytes[i] = to_byte(value(4 * c + i) / quantization.scale +
                       static_cast<float>(quantization.zero_point));
  return join_bytes(bytes);
}

// [channels][height][width] <-> feature map; lanes beyond the width become zero.
void fill_map(const float* from, int width, const FeatureMap& to) {
  auto value = [&](int c, int y, int x) {
    return c < to.channels && x < width ? from[(ptrdiff_t(c) * to.height + y) * width + x] : 0.0f;
  };
  for (int y = 0; y < to.height; y++)
    for (int c = 0; c < to.elements(); c++) {
      float* out = to.at(y, c, 0);
      std::memset(out, 0, (to.stride() - to.margin()) * sizeof(float));
      for (int x = 0; x < to.width; x++)
        out[x] = to.type == ElementType::pixels
                     ? join_bfloat16(value(c, y, 2 * x), value(c, y, 2 * x + 1))
                     : join_element(to.type, to.quantization, c,
                                    [&](int channel) { return value(channel, y, x); });
    }
}

float value_at(ElementType type, Quantization quantization, const float* element, int channel) {
  if (type == ElementType::float32) return *element;
  if (type == ElementType::int8)
    return static_cast<float>(static_cast<int>(byte_of(*element, channel)) -
                              quantization.zero_point) *
           quantization.scale;
  return channel % 2 ? odd_of(*element) : even_of(*element);
}

std::vector<float> read_map(const FeatureMap& from) {
  std::vector<float> out;
  out.reserve(size_t(from.channels) * from.height * from.width);
  for (int c = 0; c < from.channels; c++)
    for (int y = 0; y < from.height; y++)
      for (int x = 0; x < from.width; x++)
        out.push_back(value_at(from.type, from.quantization,
                               from.at(y, c / channels_per_element(from.type), x), c));
  return out;
}

// [count][channels][height][width] <-> RoIs.
void fill_rois(const float* from, int count, const Rois& to) {
  auto value = [&](int r, int c, int y, int x) {
    return c < to.channels ? from[((ptrdiff_t(r) * to.channels + c) * to.height + y) * to.width + x]
                           : 0.0f;
  };
  for (int r = 0; r < count; r++)
    for (int c = 0; c < to.elements(); c++)
      for (int y = 0; y < to.height; y++)
        for (int x = 0; x < to.width; x++)
          to.at(r / to.lanes, y, x, c)[r % to.lanes] = join_element(
              to.type, to.quantization, c, [&](int channel) { return value(r, channel, y, x); });
}

void read_rois(const Rois& from, int count, float* out) {
  for (int r = 0; r < count; r++)
    for (int c = 0; c < from.channels; c++)
      for (int y = 0; y < from.height; y++)
        for (int x = 0; x < from.width; x++)
          *out++ = value_at(
              from.type, from.quantization,
              from.at(r / from.lanes, y, x, c / channels_per_element(from.type)) + r % from.lanes,
              c);
}

}  // namespace

void Arena::reserve(size_t floats) {
  if (floats <= floats_) return;
  floats_ = 0;
  pages_.reset();  // release the old pages before allocating new ones
  pages_ = allocate_pages(floats * sizeof(float));
  floats_ = (floats * sizeof(float) + kHugePage - 1) / kHugePage * kHugePage / sizeof(float);
}

Engine::Engine(const Kernels& kernels, int threads, bool pin, const EngineParams& params)
    : kernels_(kernels),
      params_(params),
      pool_(threads, pin),
      scratch_(threads),
      context_{kernels_, pool_, scratch_},
      shared_ops_(std::make_shared<std::vector<Op>>()) {}

Engine::Engine(const Engine& other, int threads)
    : kernels_(other.kernels_),
      params_(other.params_),
      pool_(threads, false),
      scratch_(threads),
      context_{kernels_, pool_, scratch_},
      shared_ops_(other.shared_ops_),
      feature_name_(other.feature_name_) {}

ElementType Engine::type_of(const std::string& name) const {
  if (name == "pooled") return ElementType::float32;
  if (name == "input")
    return params_.precision == ElementType::bfloat16 ? ElementType::pixels : ElementType::float32;
  return name == "rois" ? params_.precision : op(name).type;
}

Quantization Engine::quantization(const std::string& name) const {
  if (name == "input" || name == "pooled") return {};
  return op(name == "rois" ? feature_name_ : name)
      .quantization;  // RoIAlign interpolates: its values stay in the range of its input
}

bool Engine::can_winograd(const OpSpec& s, ElementType type) const {
  return s.component == Component::roi && type == ElementType::float32 && s.kernel == 3 &&
         s.stride == 1 && s.padding_before == 1 && s.padding_after == 1 && s.residual.empty() &&
         s.source != "rois";
}

// Fraction of weight elements that are not zero, for weights that are zero independently: a pair is
// stored if either weight is not zero. For int8 `add` counts the elements instead.
static double element_density(ElementType type, double density) {
  return type != ElementType::float32 ? 1 - (1 - density) * (1 - density) : density;
}

// Fraction of the peak that an algorithm reaches. Source: measurements (docs/engine.md). Zeros save
// multiplications, but finding the other weights takes time, and the fewer rows share an
// activation, the more loads there are.
double Engine::expected_fraction(Algorithm algorithm, ElementType type, double element_density) {
  if (type == ElementType::int8)
    return algorithm == Algorithm::sparse ? 0.55 + 0.30 * element_density : 0.87;
  if (algorithm == Algorithm::sparse) return 0.56 + 0.26 * element_density;
  return algorithm == Algorithm::dense ? 0.90 : 0.70;
}

Algorithm Engine::choose_algorithm(const OpSpec& s, ElementType type,
                                   double element_density) const {
  const double sparse =
      element_density / expected_fraction(Algorithm::sparse, type, element_density);
  const double dense = 1 / expected_fraction(Algorithm::dense, type, 1);
  if (can_winograd(s, type)) {
    // For out x out outputs of a RoI. Winograd weights take four times the memory of a dense layer:
    // ten percent faster is not enough.
    const int out = (params_.roi.roi_size + 1) / 2, tiles = (out + kTile - 1) / kTile,
              taps = 3 * out - 2;
    const double direct = taps * taps * std::min(sparse, dense);
    const double winograd =
        tiles * tiles * kPoints / expected_fraction(Algorithm::winograd, type, 1);
    if (winograd * 1.15 < direct) return Algorithm::winograd;
  }
  return sparse < dense ? Algorithm::sparse : Algorithm::dense;
}

std::vector<Engine::PlannedOp> Engine::planned_ops() const {
  std::vector<PlannedOp> out;
  for (const Op& o : ops_) {
    if (o.spec.is_pool) continue;
    const ElementType in = type_of(o.spec.source);
    out.push_back({o.spec.name, o.algorithm, expected_fraction(o.algorithm, in, o.element_density),
                   o.nonzero, o.element_density, o.hoisted, can_winograd(o.spec, in)});
  }
  return out;
}

std::pair<Engine::Op, ConvShape> Engine::begin(const OpSpec& spec, const float* bias) const {
  Op op{};
  op.spec = spec;
  op.type = params_.precision;
  const bool negative = !spec.relu && !spec.is_pool;
  op.quantization = {
      spec.clipping_threshold > 0 ? spec.clipping_threshold / (negative ? 127 : 255) : 1,
      negative ? 128 : 0};
  if (spec.is_pool) return {std::move(op), {}};
  const ElementType in = type_of(spec.source);
  op.type = spec.output || in == ElementType::float32 ? ElementType::float32
            : in == ElementType::int8                 ? in
                                                      : ElementType::bfloat16;
  ConvShape shape{spec.in_channels,
                  spec.out_channels,
                  spec.kernel,
                  spec.stride,
                  spec.padding_before,
                  spec.relu,
                  in,
                  op.type,
                  quantization(spec.source),
                  op.quantization,
                  spec.residual.empty() ? Quantization{} : quantization(spec.residual)};
  op.hoisted = params_.hoist && spec.source == "rois";
  if (op.hoisted) {
    if (spec.kernel != 1 || spec.padding_before != 0)
      throw std::invalid_argument(spec.name +
                                  ": only a 1x1 convolution without padding can be hoisted");
    shape.stride = 1;
    shape.relu = false;
    shape.out_type = map_type(op);
    const int elements = pitch(element_count(op.type, spec.out_channels), kernels_.lanes);
    op.roi_bias.assign(channels_per_element(op.type) * elements, 0.0f);
    for (int c = 0; c < spec.out_channels; c++)
      op.roi_bias[op.type == ElementType::bfloat16 ? c / 2 + c % 2 * elements : c] =
          op.type == ElementType::int8
              ? bias[c] / op.quantization.scale + static_cast<float>(op.quantization.zero_point)
              : bias[c];
  }
  return {std::move(op), shape};
}

void Engine::finish(Op op) {
  if (op.spec.component == Component::backbone) feature_name_ = op.spec.name;
  ops_.push_back(std::move(op));
  input_height_ = input_width_ = 0;
}

void Engine::add(const OpSpec& spec, const Weights& weights, const float* bias,
                 std::optional<Algorithm> algorithm) {
  auto [op, shape] = begin(spec, bias);
  if (!spec.is_pool) {
    const int64_t count = int64_t(spec.out_channels) * spec.in_channels * spec.kernel * spec.kernel;
    op.nonzero = weights.nonzero(count, pool_);
    op.element_density = element_density(shape.in_type, double(op.nonzero) / double(count));
    const bool int8 = shape.in_type == ElementType::int8;
    op.algorithm = algorithm ? *algorithm
                   : int8    ? Algorithm::sparse
                             : choose_algorithm(spec, shape.in_type, op.element_density);
    if (op.algorithm == Algorithm::winograd && !can_winograd(spec, shape.in_type))
      throw std::invalid_argument(spec.name + ": algorithm 'winograd' cannot run this operation");
    const Packer packer{&pool_, &weights_, &pack_scratch_};
    if (op.hoisted) bias = nullptr;
    const auto pack = [&] {
      op.conv =
          pack_conv(kernels_, shape, weights, bias, spec.component == Component::roi && !op.hoisted,
                    op.algorithm == Algorithm::dense, packer);
    };
    if (op.algorithm == Algorithm::winograd)
      op.winograd = pack_winograd(kernels_, shape, weights, bias, packer);
    else
      pack();
    if (int8) {  // whether zeros come in blocks shows only in the packed weights
      const double elements =
          double(element_count(shape.in_type, spec.in_channels)) * spec.kernel * spec.kernel;
      op.element_density = double(nonzero_elements(op.conv)) / (elements * spec.out_channels);
      if (!algorithm &&
          choose_algorithm(spec, shape.in_type, op.element_density) == Algorithm::dense) {
        op.algorithm = Algorithm::dense;
        pack();
      }
    }
  }
  finish(std::move(op));
}

void Engine::add_packed(const OpSpec& spec, const PackedOp& packed,
                        std::shared_ptr<const void> owner, const float* bias) {
  auto [op, shape] = begin(spec, bias);
  op.nonzero = packed.nonzero;
  op.element_density = element_density(
      shape.in_type, double(op.nonzero) / (double(spec.out_channels) * spec.in_channels *
                                           spec.kernel * spec.kernel));
  op.algorithm = packed.algorithm;
  std::span<const std::byte> bytes = packed.spans.at(0);
  if (checksum(bytes, pool_) != packed.checksum)
    throw std::invalid_argument(spec.name + ": its packed weights are damaged");
  if (op.hoisted) bias = nullptr;
  if (op.algorithm == Algorithm::winograd) {
    if (!can_winograd(spec, shape.in_type))
      throw std::invalid_argument(spec.name + ": algorithm 'winograd' cannot run this operation");
    op.winograd = unpack_winograd(kernels_, shape, bytes, owner, bias);
  } else {
    op.conv = unpack_conv(kernels_, shape, bytes, owner, bias,
                          spec.component == Component::roi && !op.hoisted);
  }
  if (!bytes.empty())
    throw std::invalid_argument(spec.name + ": has more packed weights than the operation needs");
  finish(std::move(op));
}

PackedOp Engine::packed(const std::string& name) {
  const Op& o = op(name);
  PackedOp out{o.algorithm, o.nonzero, 0, {}};
  if (o.algorithm != Algorithm::winograd) {
    out.spans = {o.conv.packed};
    out.checksum = checksum(o.conv.packed, pool_);
    return out;
  }
  // The points are consecutive in memory, except where a memory block ends.
  std::vector<std::byte> all;
  for (const PackedConv& point : o.winograd.points) {
    out.spans.push_back(point.packed);
    all.insert(all.end(), point.packed.begin(), point.packed.end());
  }
  out.checksum = checksum(all, pool_);
  return out;
}

size_t Engine::weight_bytes() const {
  size_t n = 0;
  const auto count = [&](const PackedConv& c) {
    n += c.packed.size() + c.bias.size() * sizeof(float);
  };
  for (const Op& o : ops_) {
    if (!o.spec.is_pool && o.algorithm != Algorithm::winograd) count(o.conv);
    for (const PackedConv& point : o.winograd.points)
      count(point);
    n += (o.winograd.bias.size() + o.roi_bias.size()) * sizeof(float);
  }
  return n;
}

const Engine::Op& Engine::op(const std::string& name) const {
  for (const Op& o : ops_)
    if (o.spec.name == name) return o;
  throw std::invalid_argument("no operation '" + name + "'");
}

const FeatureMap& Engine::map(const std::string& name) const {
  return find(maps_, name);
}

const Rois& Engine::rois(const std::string& name) const {
  return find(rois_, name);
}

int64_t Engine::nonzero_weights() const {
  int64_t n = 0;
  for (const Op& o : ops_)
    n += o.nonzero;
  return n;
}

// ------------------------------------------------------------------------------------ planning

// First fit, largest first: spans that live at the same time must not overlap in memory.
void Engine::assign_offsets(std::vector<Span*>& spans, size_t& total) {
  std::stable_sort(spans.begin(), spans.end(),
                   [](const Span* a, const Span* b) { return a->floats > b->floats; });
  std::vector<Span*> placed;
  for (Span* s : spans) {
    s->floats = (s->floats + 15) / 16 * 16;
    s->offset = 0;
    for (const Span* other : placed)  // sorted by offset
      if (other->from <= s->to && s->from <= other->to && other->offset < s->offset + s->floats)
        s->offset = std::max(s->offset, other->offset + other->floats);
    placed.insert(
        std::upper_bound(placed.begin(), placed.end(), s,
                         [](const Span* a, const Span* b) { return a->offset < b->offset; }),
        s);
    total = std::max(total, s->offset + s->floats);
  }
}

void Engine::plan_memory(int height, int width) {
  if (height == input_height_ && width == input_width_) return;
  input_height_ = input_width_ = 0;
  pack_scratch_ = {};
  maps_.clear();
  rois_.clear();
  transposed_.clear();
  clean_.clear();
  const int lanes = kernels_.lanes, count = static_cast<int>(ops_.size());

  // Shape of each tensor, and the operation that reads it last. Time 0 is the network input,
  // operation i has time i + 1. Hoisted operations write a feature map, then its transpose.
  struct Tensor {
    std::string name;
    bool is_map;
    int channels, height, width;
    int border, padding;  // zeros that its readers need: rows above and below, pixels beside a row
    ElementType type;
    Quantization quantization;
    Span span;
    int alias = -1;  // index of the tensor whose span it uses; -1: its own

    FeatureMap map(float* data, int lanes) const {
      const int elements = type == ElementType::pixels ? (width + 1) / 2 : width;
      return {data, channels, height, elements, border, lanes, type, quantization, padding};
    }
    Rois rois(float* data, int blocks, int lanes) const {
      return {data, blocks, channels, height, width, lanes, type, quantization};
    }
  };
  std::vector<Tensor> tensors;
  std::map<std::string, int> index;
  auto add = [&](const std::string& name, bool is_map, int c, int h, int w, int time) {
    index[name] = static_cast<int>(tensors.size());
    tensors.push_back(
        {name, is_map, c, h, w, 0, 0, type_of(name), quantization(name), {0, 0, time, time}, -1});
  };
  const int bins = (params_.roi.roi_size + params_.roi.roi_step - 1) / params_.roi.roi_step;
  int roi_start = count + 1;
  for (int i = count - 1; i >= 0; i--)
    if (ops_[i].spec.component == Component::roi) roi_start = i + 1;
  add("input", true, 3, height, width, 0);
  std::string last_roi_op;
  for (int i = 0; i < count; i++) {
    const OpSpec& s = ops_[i].spec;
    const int time = i + 1;
    if (s.source == "rois") {
      // Input of the RoI head, read from transposed copies while blocks of RoIs run.
      Tensor& features = tensors[index.at(feature_name_)];
      features.span.to = std::max(features.span.to, roi_start);
      if (!params_.hoist && !index.count("rois"))
        add("rois", false, features.channels, bins, bins, roi_start);
    } else if (s.source == "pooled" && !index.count("pooled")) {
      const Tensor& last = tensors[index.at(last_roi_op)];
      add("pooled", false, last.channels, 1, 1, time);
      tensors[index.at(last_roi_op)].span.to = time;
    }
    int h, w;
    if (s.component == Component::roi && (ops_[i].hoisted || s.source == "rois")) {
      h = w = (params_.roi.roi_size - s.kernel + s.padding_before + s.padding_after) / s.stride + 1;
    } else {
      const Tensor& source = tensors[index.at(s.source)];
      h = out_length(source.height, s);
      w = out_length(source.width, s);
    }
    if (h < 1 || w < 1)
      throw std::invalid_argument("network input " + std::to_string(height) + "x" +
                                  std::to_string(width) + " is too small: " + s.name +
                                  " would be empty");
    add(s.name, s.component != Component::roi, s.out_channels, h, w, time);
    auto read = [&](const std::string& name) {
      if (!index.count(name)) return;
      Span& span = tensors[index[name]].span;
      span.to = std::max(span.to, time);
    };
    read(s.source);
    if (!s.residual.empty()) read(s.residual);
    if (s.component != Component::roi && s.source != "rois") {
      Tensor& source = tensors[index.at(s.source)];
      source.border = std::max(source.border, border_needed(source.height, s));
      source.padding = std::max(source.padding, padding_needed(s));
    }
    if (s.component == Component::roi) last_roi_op = s.name;
  }
  // A residual that no later operation reads is overwritten in place.
  for (int i = 0; i < count; i++) {
    const OpSpec& s = ops_[i].spec;
    if (s.residual.empty()) continue;
    const int out = index.at(s.name);
    int in = index.at(s.residual);
    if (tensors[in].span.to != i + 1 || tensors[in].border != tensors[out].border ||
        tensors[in].map(nullptr, lanes).margin() != tensors[out].map(nullptr, lanes).margin())
      continue;
    while (tensors[in].alias >= 0)
      in = tensors[in].alias;
    tensors[out].alias = in;
    tensors[in].span.to = tensors[out].span.to;
  }
  std::vector<Span*> spans;
  const int roi_lanes = kVectors * lanes;
  const int most_blocks = (params_.boxes.proposals + roi_lanes - 1) / roi_lanes;
  const int blocks = pool_.size() > 4 ? most_blocks : 1;  // blocks of RoIs in flight
  for (Tensor& t : tensors) {
    if (t.alias >= 0) continue;
    t.span.floats =
        t.is_map ? t.map(nullptr, lanes).size() : t.rois(nullptr, blocks, roi_lanes).size();
    spans.push_back(&t.span);
  }
  auto hoisted_map = [&](float* data, const Op& o) {
    const Tensor& on = tensors[index.at(feature_name_)];
    return FeatureMap{data, o.spec.out_channels, on.height, on.width, 0, lanes, map_type(o)};
  };
  // Hoisted feature maps and transposed copies live from the start of the RoI head to its end.
  const Tensor& features = tensors[index.at(feature_name_)];
  const size_t cells = size_t(features.height) * features.width;
  std::vector<std::pair<std::string, Span>> hoisted, copies;
  hoisted.reserve(count);
  copies.reserve(count + 1);
  auto copy = [&](const std::string& name, const FeatureMap& of) {
    const size_t floats = cells * cell_pitch(of, type_of(name));
    copies.emplace_back(name, Span{0, floats, roi_start, count + 1});
    spans.push_back(&copies.back().second);
  };
  for (const Op& o : ops_)
    if (o.hoisted) {
      const FeatureMap m = hoisted_map(nullptr, o);
      hoisted.emplace_back(o.spec.name, Span{0, m.size(), roi_start, roi_start});
      spans.push_back(&hoisted.back().second);
      copy(o.spec.name, m);
    }
  if (!params_.hoist) copy("rois", features.map(nullptr, lanes));
  Span winograd{0, 0, roi_start, count + 1};
  for (const Op& o : ops_)
    if (o.algorithm == Algorithm::winograd)
      winograd.floats =
          std::max(winograd.floats, winograd_floats(o.winograd, tensors[index.at(o.spec.name)].rois(
                                                                    nullptr, blocks, roi_lanes)));
  spans.push_back(&winograd);
  size_t total = 0;
  assign_offsets(spans, total);
  arena_.reserve(total);

  for (const Tensor& t : tensors) {
    const int root = t.alias >= 0 ? t.alias : index.at(t.name);
    float* data = arena_.data() + tensors[root].span.offset;
    if (t.is_map)
      maps_.emplace_back(t.name, t.map(data, lanes));
    else
      rois_.emplace_back(t.name, t.rois(data, blocks, roi_lanes));
  }
  for (const auto& [name, span] : hoisted)
    maps_.emplace_back(name, hoisted_map(arena_.data() + span.offset, op(name)));
  for (const auto& [name, span] : copies)
    transposed_.emplace_back(name, arena_.data() + span.offset);
  winograd_memory_ = arena_.data() + winograd.offset;
  input_height_ = height;
  input_width_ = width;
}

// ------------------------------------------------------------------------------------- running

// Sets a feature map's border to zero, unless this very map was the last user of its bytes: tensors
// share memory.
void Engine::prepare_border(const FeatureMap& map) {
  auto end = [](const FeatureMap& m) { return m.data + m.size(); };
  for (const FeatureMap& m : clean_)
    if (m.data == map.data && m.channels == map.channels && m.height == map.height &&
        m.width == map.width && m.border == map.border && m.type == map.type &&
        m.margin() == map.margin())
      return;
  std::erase_if(clean_,
                [&](const FeatureMap& m) { return m.data < end(map) && map.data < end(m); });
  clear_border(context_, map);
  clean_.push_back(map);
}

void Engine::run_component(Component component) {
  for (const Op& o : ops_) {
    if (o.spec.component != component) continue;
    Timer timer(timings_, o.spec.name);
    const FeatureMap& out = map(o.spec.name);
    prepare_border(out);
    if (o.spec.is_pool) {
      pool_map(context_, map(o.spec.source), o.spec.padding_before, out);
    } else {
      const FeatureMap* residual = o.spec.residual.empty() ? nullptr : &map(o.spec.residual);
      conv_map(context_, o.conv, map(o.spec.source), residual, out);
    }
  }
}

void Engine::read_rpn_outputs(std::vector<float>& logits, std::vector<float>& deltas) {
  const std::string* name = nullptr;
  for (const Op& o : ops_)
    if (o.spec.component == Component::rpn) name = &o.spec.name;
  if (!name) throw std::logic_error("the network has no RPN");
  const FeatureMap& m = map(*name);
  const int anchors = static_cast<int>(params_.boxes.cell_anchors.size());
  logits.resize(size_t(m.height) * m.width * anchors);
  deltas.resize(logits.size() * 4);
  size_t i = 0;
  for (int y = 0; y < m.height; y++)
    for (int x = 0; x < m.width; x++)
      for (int a = 0; a < anchors; a++, i++) {
        logits[i] = *m.at(y, a, x);
        for (int d = 0; d < 4; d++)
          deltas[i * 4 + d] = *m.at(y, anchors + a * 4 + d, x);
      }
}

void Engine::transpose_sources() {
  for (const Op& o : ops_) {
    if (!o.hoisted) continue;
    Timer timer(timings_, o.spec.name);
    const FeatureMap& out = map(o.spec.name);
    prepare_border(out);
    conv_map(context_, o.conv, backbone_map(), nullptr, out);
    transpose_map(context_, out, o.type, find(transposed_, o.spec.name));
  }
  if (!params_.hoist) {
    Timer timer(timings_, "transpose");
    transpose_map(context_, backbone_map(), params_.precision, find(transposed_, "rois"));
  }
  clean_.clear();  // transposed copies and RoIs overwrite borders from here on
}

void Engine::run_rois(const std::vector<Box>& boxes, std::vector<float>& logits,
                      std::vector<float>& deltas) {
  const BoxParams& b = params_.boxes;
  const int classes = b.num_classes + 1, box_columns = 4 * (b.num_classes + b.background_deltas);
  logits.resize(boxes.size() * classes);
  deltas.resize(boxes.size() * box_columns);
  transpose_sources();
  const int in_flight = rois_.front().second.blocks * rois_.front().second.lanes;
  for (size_t start = 0; start < boxes.size(); start += in_flight) {
    const int count = static_cast<int>(std::min<size_t>(in_flight, boxes.size() - start));
    auto used = [&](Rois r) {
      r.blocks = (count + r.lanes - 1) / r.lanes;
      return r;
    };
    auto align = [&](const std::string& name, const FeatureMap& from, const float* bias, bool relu,
                     int step) {
      Timer timer(timings_, "roialign." + name);
      RoiParams params = params_.roi;
      params.roi_step = step;
      roi_align(context_, params, from, find(transposed_, name), boxes[start].data(), count, bias,
                relu, used(rois(name)));
    };
    if (!params_.hoist) align("rois", backbone_map(), nullptr, false, params_.roi.roi_step);
    bool pooled = false;
    const std::string* last = nullptr;
    for (const Op& o : ops_) {
      if (o.spec.component != Component::roi) continue;
      if (o.hoisted) {
        align(o.spec.name, map(o.spec.name), o.roi_bias.data(), o.spec.relu, o.spec.stride);
      } else {
        if (o.spec.source == "pooled" && !pooled) {
          Timer timer(timings_, "mean");
          mean_rois(context_, used(rois(*last)), used(rois("pooled")));
          pooled = true;
        }
        Timer timer(timings_, o.spec.name);
        // RoIAlign did not compute the bins that the stride would skip.
        const int stride =
            o.spec.source == "rois" ? o.spec.stride / params_.roi.roi_step : o.spec.stride;
        const Rois residual = o.spec.residual.empty() ? Rois{} : used(rois(o.spec.residual));
        if (o.algorithm == Algorithm::winograd)
          winograd_rois(context_, o.winograd, used(rois(o.spec.source)), used(rois(o.spec.name)),
                        count, winograd_memory_);
        else
          conv_rois(context_, o.conv, stride, used(rois(o.spec.source)),
                    o.spec.residual.empty() ? nullptr : &residual, used(rois(o.spec.name)), count);
      }
      last = &o.spec.name;
    }
    const Rois out = used(rois(*last));
    for (int r = 0; r < count; r++) {
      const float* column = out.at(r / out.lanes, 0, 0, 0) + r % out.lanes;
      for (int k = 0; k < classes; k++)
        logits[(start + r) * classes + k] = column[k * out.lanes];
      for (int k = 0; k < box_columns; k++)
        deltas[(start + r) * box_columns + k] = column[(classes + k) * out.lanes];
    }
  }
}

template <class T>
std::vector<Detection> Engine::run(const T* network_input) {
  timings_.clear();
  {
    Timer timer(timings_, "normalise");
    prepare_border(map("input"));
    normalise(context_, network_input, input_width_, params_.pixel_mean, params_.pixel_std,
              map("input"));
  }
  run_component(Component::backbone);
  run_component(Component::rpn);
  std::vector<float> logits, deltas;
  const float h = static_cast<float>(input_height_), w = static_cast<float>(input_width_);
  std::vector<Box> boxes;
  {
    Timer timer(timings_, "proposals");
    read_rpn_outputs(logits, deltas);
    boxes = find_proposals(params_.boxes, logits.data(), deltas.data(), feature_height(),
                           feature_width(), h, w);
  }
  if (boxes.empty()) return {};
  run_rois(boxes, logits, deltas);
  Timer timer(timings_, "detections");
  return find_detections(params_.boxes, logits.data(), deltas.data(), boxes, h, w);
}

template std::vector<Detection> Engine::run(const uint8_t*);
template std::vector<Detection> Engine::run(const float*);

// -------------------------------------------------------------------------------------- stages

template <class T>
std::vector<float> Engine::features(const T* network_input) {
  prepare_border(map("input"));
  normalise(context_, network_input, input_width_, params_.pixel_mean, params_.pixel_std,
            map("input"));
  run_component(Component::backbone);
  return read_map(backbone_map());
}

template std::vector<float> Engine::features(const uint8_t*);
template std::vector<float> Engine::features(const float*);

void Engine::load_features(const float* features) {
  clean_.clear();
  prepare_border(backbone_map());
  fill_map(features, feature_width(), backbone_map());
}

void Engine::rpn(const float* features, std::vector<float>& logits, std::vector<float>& deltas) {
  load_features(features);
  run_component(Component::rpn);
  read_rpn_outputs(logits, deltas);
}

void Engine::roi_head(const float* features, const std::vector<Box>& rois,
                      std::vector<float>& logits, std::vector<float>& deltas) {
  load_features(features);
  run_rois(rois, logits, deltas);
}

std::vector<float> Engine::roi_features(const float* features, const std::vector<Box>& rois) {
  const FeatureMap& m = backbone_map();
  load_features(features);
  const int bins = params_.roi.roi_size, lanes = kVectors * kernels_.lanes;
  const int count = static_cast<int>(rois.size()), blocks = (count + lanes - 1) / lanes;
  std::vector<float> copy(size_t(m.height) * m.width * cell_pitch(m, m.type) + 16);
  float* flat =
      reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(copy.data()) + 63) & ~uintptr_t{63});
  transpose_map(context_, m, m.type, flat);
  Arena memory;
  Rois out{nullptr, blocks, m.channels, bins, bins, lanes, m.type, m.quantization};
  memory.reserve(out.size());
  out.data = memory.data();
  RoiParams params = params_.roi;
  params.roi_step = 1;
  if (count) roi_align(context_, params, m, flat, rois[0].data(), count, nullptr, false, out);
  std::vector<float> result(size_t(count) * m.channels * bins * bins);
  read_rois(out, count, result.data());
  return result;
}

std::vector<float> Engine::run_op(const std::string& name, const float* x, Shape& shape,
                                  const float* residual, const Shape& residual_shape) {
  const Op& o = op(name);
  const OpSpec& s = o.spec;
  if (o.hoisted)
    throw std::invalid_argument(name + " is hoisted: build the engine without hoisting");
  const auto [batch, channels, height, width] = shape;
  const int out_height = out_length(height, s), out_width = out_length(width, s);
  if (channels != s.in_channels || batch < 1 || (s.component != Component::roi && batch != 1) ||
      out_height < 1 || out_width < 1)
    throw std::invalid_argument(name + ": x has the wrong shape");
  shape = {batch, s.out_channels, out_height, out_width};
  if (residual && (s.is_pool || residual_shape != shape))
    throw std::invalid_argument(name + ": the residual has the wrong shape");
  std::vector<float> none;
  if (!residual && !s.residual.empty() &&
      o.type == ElementType::int8) {  // the bias includes its zero point
    none.assign(size_t(batch) * s.out_channels * out_height * out_width, 0.0f);
    residual = none.data();
  }
  Arena memory[3];
  if (s.component == Component::roi) {
    const int lanes = kVectors * kernels_.lanes, blocks = (batch + lanes - 1) / lanes;
    Rois in{nullptr, blocks, s.in_channels,     height,
            width,   lanes,  type_of(s.source), quantization(s.source)};
    Rois out{nullptr, blocks, s.out_channels, out_height, out_width, lanes, o.type, o.quantization};
    Rois add = out;
    if (residual) add.quantization = quantization(s.residual);
    Rois* const all[] = {&in, &out, &add};
    for (int i = 0; i < 3; i++) {
      memory[i].reserve(all[i]->size());
      all[i]->data = memory[i].data();
    }
    fill_rois(x, batch, in);
    if (residual) fill_rois(residual, batch, add);
    if (o.algorithm == Algorithm::winograd) {
      Arena points;
      points.reserve(winograd_floats(o.winograd, out));
      winograd_rois(context_, o.winograd, in, out, batch, points.data());
    } else {
      conv_rois(context_, o.conv, s.stride, in, residual ? &add : nullptr, out, batch);
    }
    std::vector<float> result(size_t(batch) * s.out_channels * out_height * out_width);
    read_rois(out, batch, result.data());
    return result;
  }
  const int lanes = kernels_.lanes;
  const ElementType type = type_of(s.source);
  FeatureMap in{nullptr,
                s.in_channels,
                height,
                type == ElementType::pixels ? (width + 1) / 2 : width,
                border_needed(height, s),
                lanes,
                type,
                quantization(s.source),
                padding_needed(s)};
  FeatureMap out{nullptr, s.out_channels, out_height, out_width, 0, lanes, o.type, o.quantization};
  FeatureMap add = out;
  if (residual) add.quantization = quantization(s.residual);
  FeatureMap* const all[] = {&in, &out, &add};
  for (int i = 0; i < 3; i++) {
    memory[i].reserve(all[i]->size());
    all[i]->data = memory[i].data();
  }
  fill_map(x, width, in);
  if (residual) fill_map(residual, out_width, add);
  if (s.is_pool)
    pool_map(context_, in, s.padding_before, out);
  else
    conv_map(context_, o.conv, in, residual ? &add : nullptr, out);
  return read_map(out);
}

}  // namespace sparsedet
