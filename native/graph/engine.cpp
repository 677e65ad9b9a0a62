#include "graph/engine.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>

#include "kernels/bfloat16.h"

namespace sparsedet {

namespace {

int out_length(int length, const OpSpec& s) {
  const int room = length + s.padding_before + s.padding_after - s.kernel;
  return room < 0 ? 0 : room / s.stride + 1;
}

// Rows of zeros that an operation reads above or below its input.
int border_needed(int in_height, const OpSpec& s) {
  const int below =
      (out_length(in_height, s) - 1) * s.stride - s.padding_before + s.kernel - in_height;
  return std::max({s.padding_before, below, 0});
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

// Word c, given a function of its channels.
template <class Value>
float join(Type type, Quantised q, int c, const Value& value) {
  if (type == Type::float32) return value(c);
  if (type == Type::bfloat16) return join_bfloat16(value(2 * c), value(2 * c + 1));
  uint32_t bytes[4];
  for (int i = 0; i < 4; i++)
    bytes[i] = to_byte(value(4 * c + i) / q.scale + static_cast<float>(q.zero));
  return join_bytes(bytes);
}

// [channels][height][width] <-> map; the lanes beyond the width are zeroed.
void fill_map(const float* from, int width, const Map& to) {
  auto value = [&](int c, int y, int x) {
    return c < to.channels && x < width ? from[(ptrdiff_t(c) * to.height + y) * width + x] : 0.0f;
  };
  for (int y = 0; y < to.height; y++)
    for (int c = 0; c < to.words(); c++) {
      float* out = to.at(y, c, 0);
      std::memset(out, 0, (to.stride() - to.lanes) * sizeof(float));
      for (int x = 0; x < to.width; x++)
        out[x] = to.type == Type::pixels
                     ? join_bfloat16(value(c, y, 2 * x), value(c, y, 2 * x + 1))
                     : join(to.type, to.q, c, [&](int channel) { return value(channel, y, x); });
    }
}

float value_at(Type type, Quantised q, const float* word, int channel) {
  if (type == Type::float32) return *word;
  if (type == Type::int8)
    return static_cast<float>(static_cast<int>(byte_of(*word, channel)) - q.zero) * q.scale;
  return channel % 2 ? odd_of(*word) : even_of(*word);
}

std::vector<float> read_map(const Map& from) {
  std::vector<float> out;
  out.reserve(size_t(from.channels) * from.height * from.width);
  for (int c = 0; c < from.channels; c++)
    for (int y = 0; y < from.height; y++)
      for (int x = 0; x < from.width; x++)
        out.push_back(
            value_at(from.type, from.q, from.at(y, c / channels_a_word(from.type), x), c));
  return out;
}

// [count][channels][height][width] <-> regions.
void fill_regions(const float* from, int count, const Regions& to) {
  auto value = [&](int r, int c, int y, int x) {
    return c < to.channels ? from[((ptrdiff_t(r) * to.channels + c) * to.height + y) * to.width + x]
                           : 0.0f;
  };
  for (int r = 0; r < count; r++)
    for (int c = 0; c < to.words(); c++)
      for (int y = 0; y < to.height; y++)
        for (int x = 0; x < to.width; x++)
          to.at(r / to.lanes, y, x, c)[r % to.lanes] =
              join(to.type, to.q, c, [&](int channel) { return value(r, channel, y, x); });
}

void read_regions(const Regions& from, int count, float* out) {
  for (int r = 0; r < count; r++)
    for (int c = 0; c < from.channels; c++)
      for (int y = 0; y < from.height; y++)
        for (int x = 0; x < from.width; x++)
          *out++ = value_at(
              from.type, from.q,
              from.at(r / from.lanes, y, x, c / channels_a_word(from.type)) + r % from.lanes, c);
}

}  // namespace

void Arena::reserve(size_t floats) {
  if (floats <= floats_) return;
  floats_ = 0;
  pages_.reset();  // before the new ones are had
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

Type Engine::type_of(const std::string& name) const {
  if (name == "pooled") return Type::float32;
  if (name == "input") return params_.precision == Type::bfloat16 ? Type::pixels : Type::float32;
  return name == "rois" ? params_.precision : op(name).type;
}

Quantised Engine::quantised(const std::string& name) const {
  if (name == "input" || name == "pooled") return {};
  return op(name == "rois" ? feature_name_ : name).q;  // RoIAlign stays within its input
}

bool Engine::can_winograd(const OpSpec& s, Type type) const {
  return s.part == Part::roi && type == Type::float32 && s.kernel == 3 && s.stride == 1 &&
         s.padding_before == 1 && s.padding_after == 1 && s.residual.empty() && s.source != "rois";
}

// Share of words that hold a weight: a pair stays if either of its weights is not zero. Int8's is
// counted, see `add`.
static double word_density(Type type, double density) {
  return type != Type::float32 ? 1 - (1 - density) * (1 - density) : density;
}

// Measured (docs/engine.md). A zero saves its multiplications, but not the time to look where
// the others are, and the fewer rows share an activation the more loads there are.
double Engine::expected_share(Method method, Type type, double words) {
  if (type == Type::int8) return method == Method::sparse ? 0.55 + 0.30 * words : 0.87;
  if (method == Method::sparse) return 0.56 + 0.26 * words;
  return method == Method::dense ? 0.90 : 0.70;
}

Method Engine::choose_method(const OpSpec& s, Type type, double words) const {
  const double sparse = words / expected_share(Method::sparse, type, words);
  const double dense = 1 / expected_share(Method::dense, type, 1);
  if (can_winograd(s, type)) {
    // For out x out outputs of a region. Its weights take four times a dense layer's memory:
    // a tenth faster is not enough.
    const int out = (params_.roi.size + 1) / 2, tiles = (out + kTile - 1) / kTile,
              taps = 3 * out - 2;
    const double direct = taps * taps * std::min(sparse, dense);
    const double winograd = tiles * tiles * kPoints / expected_share(Method::winograd, type, 1);
    if (winograd * 1.15 < direct) return Method::winograd;
  }
  return sparse < dense ? Method::sparse : Method::dense;
}

std::vector<Engine::Planned> Engine::planned() const {
  std::vector<Planned> out;
  for (const Op& o : ops_) {
    if (o.spec.is_pool) continue;
    const Type in = type_of(o.spec.source);
    out.push_back({o.spec.name, o.method, expected_share(o.method, in, o.words), o.nonzero, o.words,
                   o.hoisted, can_winograd(o.spec, in)});
  }
  return out;
}

std::pair<Engine::Op, ConvShape> Engine::begin(const OpSpec& spec, const float* bias) const {
  Op op{};
  op.spec = spec;
  op.type = params_.precision;
  const bool negative = !spec.relu && !spec.is_pool;
  op.q = {spec.range > 0 ? spec.range / (negative ? 127 : 255) : 1, negative ? 128 : 0};
  if (spec.is_pool) return {std::move(op), {}};
  const Type in = type_of(spec.source);
  op.type = spec.output || in == Type::float32 ? Type::float32
            : in == Type::int8                 ? in
                                               : Type::bfloat16;
  ConvShape shape{spec.in_channels,
                  spec.out_channels,
                  spec.kernel,
                  spec.stride,
                  spec.padding_before,
                  spec.relu,
                  in,
                  op.type,
                  quantised(spec.source),
                  op.q,
                  spec.residual.empty() ? Quantised{} : quantised(spec.residual)};
  op.hoisted = params_.hoist && spec.source == "rois";
  if (op.hoisted) {
    if (spec.kernel != 1 || spec.padding_before != 0)
      throw std::invalid_argument(spec.name + ": only a 1x1 convolution without padding hoists");
    shape.stride = 1;
    shape.relu = false;
    shape.out = map_type(op);
    const int words = pitch(words_of(op.type, spec.out_channels), kernels_.lanes);
    op.roi_bias.assign(channels_a_word(op.type) * words, 0.0f);
    for (int c = 0; c < spec.out_channels; c++)
      op.roi_bias[op.type == Type::bfloat16 ? c / 2 + c % 2 * words : c] =
          op.type == Type::int8 ? bias[c] / op.q.scale + static_cast<float>(op.q.zero) : bias[c];
  }
  return {std::move(op), shape};
}

void Engine::finish(Op op) {
  if (op.spec.part == Part::backbone) feature_name_ = op.spec.name;
  ops_.push_back(std::move(op));
  input_height_ = input_width_ = 0;
}

void Engine::add(const OpSpec& spec, const Weights& weights, const float* bias,
                 std::optional<Method> method) {
  auto [op, shape] = begin(spec, bias);
  if (!spec.is_pool) {
    const int64_t count = int64_t(spec.out_channels) * spec.in_channels * spec.kernel * spec.kernel;
    op.nonzero = weights.nonzero(count, pool_);
    op.words = word_density(shape.in, double(op.nonzero) / double(count));
    const bool int8 = shape.in == Type::int8;
    op.method = method ? *method : int8 ? Method::sparse : choose_method(spec, shape.in, op.words);
    if (op.method == Method::winograd && !can_winograd(spec, shape.in))
      throw std::invalid_argument(spec.name + ": cannot be run by Winograd's method");
    const Packer packer{&pool_, &weights_, &pack_scratch_};
    if (op.hoisted) bias = nullptr;
    const auto pack = [&] {
      op.conv = pack_conv(kernels_, shape, weights, bias, spec.part == Part::roi && !op.hoisted,
                          op.method == Method::dense, packer);
    };
    if (op.method == Method::winograd)
      op.winograd = pack_winograd(kernels_, shape, weights, bias, packer);
    else
      pack();
    if (int8) {  // zeros are in blocks or not: only what is packed tells
      const double words = double(words_of(shape.in, spec.in_channels)) * spec.kernel * spec.kernel;
      op.words = double(nonzero_words(op.conv)) / (words * spec.out_channels);
      if (!method && choose_method(spec, shape.in, op.words) == Method::dense) {
        op.method = Method::dense;
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
  op.words = word_density(
      shape.in, double(op.nonzero) /
                    (double(spec.out_channels) * spec.in_channels * spec.kernel * spec.kernel));
  op.method = packed.method;
  std::span<const std::byte> bytes = packed.parts.at(0);
  if (checksum(bytes, pool_) != packed.checksum)
    throw std::invalid_argument(spec.name + ": its packed weights are damaged");
  if (op.hoisted) bias = nullptr;
  if (op.method == Method::winograd) {
    if (!can_winograd(spec, shape.in))
      throw std::invalid_argument(spec.name + ": cannot be run by Winograd's method");
    op.winograd = unpack_winograd(kernels_, shape, bytes, owner, bias);
  } else {
    op.conv =
        unpack_conv(kernels_, shape, bytes, owner, bias, spec.part == Part::roi && !op.hoisted);
  }
  if (!bytes.empty()) throw std::invalid_argument(spec.name + ": more is packed than it has");
  finish(std::move(op));
}

PackedOp Engine::packed(const std::string& name) {
  const Op& o = op(name);
  PackedOp out{o.method, o.nonzero, 0, {}};
  if (o.method != Method::winograd) {
    out.parts = {o.conv.packed};
    out.checksum = checksum(o.conv.packed, pool_);
    return out;
  }
  // Points that were packed one after the other mostly lie so, but not past a block's end.
  std::vector<std::byte> all;
  for (const PackedConv& point : o.winograd.points) {
    out.parts.push_back(point.packed);
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
    if (!o.spec.is_pool && o.method != Method::winograd) count(o.conv);
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

const Map& Engine::map(const std::string& name) const {
  return find(maps_, name);
}

const Regions& Engine::region_tensor(const std::string& name) const {
  return find(regions_, name);
}

int64_t Engine::nonzero_weights() const {
  int64_t n = 0;
  for (const Op& o : ops_)
    n += o.nonzero;
  return n;
}

// ------------------------------------------------------------------------------------ planning

// First fit, largest first: spans whose times overlap must not overlap in memory.
void Engine::fit_letterbox(std::vector<Span*>& spans, size_t& total) {
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

void Engine::plan(int height, int width) {
  if (height == input_height_ && width == input_width_) return;
  input_height_ = input_width_ = 0;
  pack_scratch_ = {};
  maps_.clear();
  regions_.clear();
  transposed_.clear();
  clean_.clear();
  const int lanes = kernels_.lanes, count = static_cast<int>(ops_.size());

  // Shapes, and the operation after which each tensor is last read. Time 0 is the network input,
  // operation i has time i + 1. Hoisted operations write a map, then its transpose.
  struct Tensor {
    std::string name;
    bool is_map;
    int channels, height, width, border;
    Type type;
    Quantised q;
    Span span;
    int alias = -1;  // lives in that tensor's span instead

    Map map(float* data, int lanes) const {
      const int words = type == Type::pixels ? (width + 1) / 2 : width;
      return {data, channels, height, words, border, lanes, type, q};
    }
    Regions regions(float* data, int blocks, int lanes) const {
      return {data, blocks, channels, height, width, lanes, type, q};
    }
  };
  std::vector<Tensor> tensors;
  std::map<std::string, int> index;
  auto add = [&](const std::string& name, bool is_map, int c, int h, int w, int time) {
    index[name] = static_cast<int>(tensors.size());
    tensors.push_back(
        {name, is_map, c, h, w, 0, type_of(name), quantised(name), {0, 0, time, time}, -1});
  };
  const int bins = (params_.roi.size + params_.roi.step - 1) / params_.roi.step;
  int roi_start = count + 1;
  for (int i = count - 1; i >= 0; i--)
    if (ops_[i].spec.part == Part::roi) roi_start = i + 1;
  add("input", true, 3, height, width, 0);
  std::string last_region;
  for (int i = 0; i < count; i++) {
    const OpSpec& s = ops_[i].spec;
    const int time = i + 1;
    if (s.source == "rois") {
      // The regions' input: read through transposed copies while blocks of regions are run.
      Tensor& features = tensors[index.at(feature_name_)];
      features.span.to = std::max(features.span.to, roi_start);
      if (!params_.hoist && !index.count("rois"))
        add("rois", false, features.channels, bins, bins, roi_start);
    } else if (s.source == "pooled" && !index.count("pooled")) {
      const Tensor& last = tensors[index.at(last_region)];
      add("pooled", false, last.channels, 1, 1, time);
      tensors[index.at(last_region)].span.to = time;
    }
    int h, w;
    if (s.part == Part::roi && (ops_[i].hoisted || s.source == "rois")) {
      h = w = (params_.roi.size - s.kernel + s.padding_before + s.padding_after) / s.stride + 1;
    } else {
      const Tensor& source = tensors[index.at(s.source)];
      h = out_length(source.height, s);
      w = out_length(source.width, s);
    }
    if (h < 1 || w < 1)
      throw std::invalid_argument("network input " + std::to_string(height) + "x" + std::to_string(width) +
                                  " is too small: " + s.name + " would be empty");
    add(s.name, s.part != Part::roi, s.out_channels, h, w, time);
    auto read = [&](const std::string& name) {
      if (!index.count(name)) return;
      Span& span = tensors[index[name]].span;
      span.to = std::max(span.to, time);
    };
    read(s.source);
    if (!s.residual.empty()) read(s.residual);
    if (s.part != Part::roi && s.source != "rois") {
      Tensor& source = tensors[index.at(s.source)];
      source.border = std::max(source.border, border_needed(source.height, s));
    }
    if (s.part == Part::roi) last_region = s.name;
  }
  // A residual that is last read here may be overwritten in place.
  for (int i = 0; i < count; i++) {
    const OpSpec& s = ops_[i].spec;
    if (s.residual.empty()) continue;
    const int out = index.at(s.name);
    int in = index.at(s.residual);
    if (tensors[in].span.to != i + 1 || tensors[in].border != tensors[out].border) continue;
    while (tensors[in].alias >= 0)
      in = tensors[in].alias;
    tensors[out].alias = in;
    tensors[in].span.to = tensors[out].span.to;
  }
  std::vector<Span*> spans;
  const int region_lanes = kVectors * lanes;
  const int most_blocks = (params_.boxes.proposals + region_lanes - 1) / region_lanes;
  const int blocks = pool_.size() > 4 ? most_blocks : 1;  // regions in flight
  for (Tensor& t : tensors) {
    if (t.alias >= 0) continue;
    t.span.floats =
        t.is_map ? t.map(nullptr, lanes).size() : t.regions(nullptr, blocks, region_lanes).size();
    spans.push_back(&t.span);
  }
  auto hoisted_map = [&](float* data, const Op& o) {
    const Tensor& on = tensors[index.at(feature_name_)];
    return Map{data, o.spec.out_channels, on.height, on.width, 0, lanes, map_type(o)};
  };
  // Hoisted maps and transposed copies, alive from the start of the region phase to its end.
  const Tensor& features = tensors[index.at(feature_name_)];
  const size_t cells = size_t(features.height) * features.width;
  std::vector<std::pair<std::string, Span>> hoisted, copies;
  hoisted.reserve(count);
  copies.reserve(count + 1);
  auto copy = [&](const std::string& name, const Map& of) {
    const size_t floats = cells * cell_pitch(of, type_of(name));
    copies.emplace_back(name, Span{0, floats, roi_start, count + 1});
    spans.push_back(&copies.back().second);
  };
  for (const Op& o : ops_)
    if (o.hoisted) {
      const Map m = hoisted_map(nullptr, o);
      hoisted.emplace_back(o.spec.name, Span{0, m.size(), roi_start, roi_start});
      spans.push_back(&hoisted.back().second);
      copy(o.spec.name, m);
    }
  if (!params_.hoist) copy("rois", features.map(nullptr, lanes));
  Span winograd{0, 0, roi_start, count + 1};
  for (const Op& o : ops_)
    if (o.method == Method::winograd)
      winograd.floats = std::max(winograd.floats,
                                 winograd_floats(o.winograd, tensors[index.at(o.spec.name)].regions(
                                                                 nullptr, blocks, region_lanes)));
  spans.push_back(&winograd);
  size_t total = 0;
  fit_letterbox(spans, total);
  arena_.reserve(total);

  for (const Tensor& t : tensors) {
    const int root = t.alias >= 0 ? t.alias : index.at(t.name);
    float* data = arena_.data() + tensors[root].span.offset;
    if (t.is_map)
      maps_.emplace_back(t.name, t.map(data, lanes));
    else
      regions_.emplace_back(t.name, t.regions(data, blocks, region_lanes));
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

// Tensors share memory, so a map's border has to be zeroed again unless exactly this map was the
// last to use these bytes.
void Engine::prepare_border(const Map& map) {
  auto end = [](const Map& m) { return m.data + m.size(); };
  for (const Map& m : clean_)
    if (m.data == map.data && m.channels == map.channels && m.height == map.height &&
        m.width == map.width && m.border == map.border && m.type == map.type)
      return;
  std::erase_if(clean_, [&](const Map& m) { return m.data < end(map) && map.data < end(m); });
  clear_border(context_, map);
  clean_.push_back(map);
}

void Engine::run_maps(Part part) {
  for (const Op& o : ops_) {
    if (o.spec.part != part) continue;
    Timer timer(timings_, o.spec.name);
    const Map& out = map(o.spec.name);
    prepare_border(out);
    if (o.spec.is_pool) {
      pool_map(context_, map(o.spec.source), o.spec.padding_before, out);
    } else {
      const Map* residual = o.spec.residual.empty() ? nullptr : &map(o.spec.residual);
      conv_map(context_, o.conv, map(o.spec.source), residual, out);
    }
  }
}

void Engine::find_boxes(std::vector<float>& logits, std::vector<float>& deltas) {
  const std::string* name = nullptr;
  for (const Op& o : ops_)
    if (o.spec.part == Part::rpn) name = &o.spec.name;
  if (!name) throw std::logic_error("the network has no RPN");
  const Map& m = map(*name);
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
    const Map& out = map(o.spec.name);
    prepare_border(out);
    conv_map(context_, o.conv, feature_map(), nullptr, out);
    transpose_map(context_, out, o.type, find(transposed_, o.spec.name));
  }
  if (!params_.hoist) {
    Timer timer(timings_, "transpose");
    transpose_map(context_, feature_map(), params_.precision, find(transposed_, "rois"));
  }
  clean_.clear();  // transposed copies and regions overwrite borders from here on
}

void Engine::run_regions(const std::vector<Box>& boxes, std::vector<float>& logits,
                         std::vector<float>& deltas) {
  const BoxParams& b = params_.boxes;
  const int classes = b.num_classes + 1, box_columns = 4 * (b.num_classes + b.background_deltas);
  logits.resize(boxes.size() * classes);
  deltas.resize(boxes.size() * box_columns);
  transpose_sources();
  const int in_flight = regions_.front().second.blocks * regions_.front().second.lanes;
  for (size_t start = 0; start < boxes.size(); start += in_flight) {
    const int count = static_cast<int>(std::min<size_t>(in_flight, boxes.size() - start));
    auto used = [&](Regions r) {
      r.blocks = (count + r.lanes - 1) / r.lanes;
      return r;
    };
    auto align = [&](const std::string& name, const Map& from, const float* bias, bool relu,
                     int step) {
      Timer timer(timings_, "roialign." + name);
      RoiParams params = params_.roi;
      params.step = step;
      roi_align(context_, params, from, find(transposed_, name), boxes[start].data(), count, bias,
                relu, used(region_tensor(name)));
    };
    if (!params_.hoist) align("rois", feature_map(), nullptr, false, params_.roi.step);
    bool pooled = false;
    const std::string* last = nullptr;
    for (const Op& o : ops_) {
      if (o.spec.part != Part::roi) continue;
      if (o.hoisted) {
        align(o.spec.name, map(o.spec.name), o.roi_bias.data(), o.spec.relu, o.spec.stride);
      } else {
        if (o.spec.source == "pooled" && !pooled) {
          Timer timer(timings_, "mean");
          mean_regions(context_, used(region_tensor(*last)), used(region_tensor("pooled")));
          pooled = true;
        }
        Timer timer(timings_, o.spec.name);
        // Bins that a stride would skip were never computed.
        const int stride =
            o.spec.source == "rois" ? o.spec.stride / params_.roi.step : o.spec.stride;
        const Regions residual =
            o.spec.residual.empty() ? Regions{} : used(region_tensor(o.spec.residual));
        if (o.method == Method::winograd)
          winograd_regions(context_, o.winograd, used(region_tensor(o.spec.source)),
                           used(region_tensor(o.spec.name)), count, winograd_memory_);
        else
          conv_regions(context_, o.conv, stride, used(region_tensor(o.spec.source)),
                       o.spec.residual.empty() ? nullptr : &residual,
                       used(region_tensor(o.spec.name)), count);
      }
      last = &o.spec.name;
    }
    const Regions out = used(region_tensor(*last));
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
  run_maps(Part::backbone);
  run_maps(Part::rpn);
  std::vector<float> logits, deltas;
  const float h = static_cast<float>(input_height_), w = static_cast<float>(input_width_);
  std::vector<Box> boxes;
  {
    Timer timer(timings_, "proposals");
    find_boxes(logits, deltas);
    boxes = find_proposals(params_.boxes, logits.data(), deltas.data(), feature_height(),
                           feature_width(), h, w);
  }
  if (boxes.empty()) return {};
  run_regions(boxes, logits, deltas);
  Timer timer(timings_, "detections");
  return find_detections(params_.boxes, logits.data(), deltas.data(), boxes, h, w);
}

template std::vector<Detection> Engine::run(const uint8_t*);
template std::vector<Detection> Engine::run(const float*);

// -------------------------------------------------------------------------------------- stages

template <class T>
std::vector<float> Engine::features(const T* network_input) {
  prepare_border(map("input"));
  normalise(context_, network_input, input_width_, params_.pixel_mean, params_.pixel_std, map("input"));
  run_maps(Part::backbone);
  return read_map(feature_map());
}

template std::vector<float> Engine::features(const uint8_t*);
template std::vector<float> Engine::features(const float*);

void Engine::load_features(const float* features) {
  clean_.clear();
  prepare_border(feature_map());
  fill_map(features, feature_width(), feature_map());
}

void Engine::rpn(const float* features, std::vector<float>& logits, std::vector<float>& deltas) {
  load_features(features);
  run_maps(Part::rpn);
  find_boxes(logits, deltas);
}

void Engine::regions(const float* features, const std::vector<Box>& boxes,
                     std::vector<float>& logits, std::vector<float>& deltas) {
  load_features(features);
  run_regions(boxes, logits, deltas);
}

std::vector<float> Engine::roi_features(const float* features, const std::vector<Box>& boxes) {
  const Map& m = feature_map();
  load_features(features);
  const int bins = params_.roi.size, lanes = kVectors * kernels_.lanes;
  const int count = static_cast<int>(boxes.size()), blocks = (count + lanes - 1) / lanes;
  std::vector<float> copy(size_t(m.height) * m.width * cell_pitch(m, m.type) + 16);
  float* flat =
      reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(copy.data()) + 63) & ~uintptr_t{63});
  transpose_map(context_, m, m.type, flat);
  Arena memory;
  Regions out{nullptr, blocks, m.channels, bins, bins, lanes, m.type, m.q};
  memory.reserve(out.size());
  out.data = memory.data();
  RoiParams params = params_.roi;
  params.step = 1;
  if (count) roi_align(context_, params, m, flat, boxes[0].data(), count, nullptr, false, out);
  std::vector<float> result(size_t(count) * m.channels * bins * bins);
  read_regions(out, count, result.data());
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
  if (channels != s.in_channels || batch < 1 || (s.part != Part::roi && batch != 1) ||
      out_height < 1 || out_width < 1)
    throw std::invalid_argument(name + ": x has the wrong shape");
  shape = {batch, s.out_channels, out_height, out_width};
  if (residual && (s.is_pool || residual_shape != shape))
    throw std::invalid_argument(name + ": the residual has the wrong shape");
  std::vector<float> none;
  if (!residual && !s.residual.empty() && o.type == Type::int8) {  // its zero is in the bias
    none.assign(size_t(batch) * s.out_channels * out_height * out_width, 0.0f);
    residual = none.data();
  }
  Arena memory[3];
  if (s.part == Part::roi) {
    const int lanes = kVectors * kernels_.lanes, blocks = (batch + lanes - 1) / lanes;
    Regions in{nullptr, blocks, s.in_channels,     height,
               width,   lanes,  type_of(s.source), quantised(s.source)};
    Regions out{nullptr, blocks, s.out_channels, out_height, out_width, lanes, o.type, o.q};
    Regions add = out;
    if (residual) add.q = quantised(s.residual);
    Regions* const all[] = {&in, &out, &add};
    for (int i = 0; i < 3; i++) {
      memory[i].reserve(all[i]->size());
      all[i]->data = memory[i].data();
    }
    fill_regions(x, batch, in);
    if (residual) fill_regions(residual, batch, add);
    if (o.method == Method::winograd) {
      Arena points;
      points.reserve(winograd_floats(o.winograd, out));
      winograd_regions(context_, o.winograd, in, out, batch, points.data());
    } else {
      conv_regions(context_, o.conv, s.stride, in, residual ? &add : nullptr, out, batch);
    }
    std::vector<float> result(size_t(batch) * s.out_channels * out_height * out_width);
    read_regions(out, batch, result.data());
    return result;
  }
  const int lanes = kernels_.lanes;
  const Type type = type_of(s.source);
  Map in{nullptr,
         s.in_channels,
         height,
         type == Type::pixels ? (width + 1) / 2 : width,
         border_needed(height, s),
         lanes,
         type,
         quantised(s.source)};
  Map out{nullptr, s.out_channels, out_height, out_width, 0, lanes, o.type, o.q};
  Map add = out;
  if (residual) add.q = quantised(s.residual);
  Map* const all[] = {&in, &out, &add};
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
