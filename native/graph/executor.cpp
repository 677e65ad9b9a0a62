#include "graph/executor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>
#include <stdexcept>

namespace sparsedet {

namespace {

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

}  // namespace

Executor::Executor(const Kernels& kernels, int threads, bool pin, int height, int width)
    : kernels_(kernels),
      pool_(threads, pin),
      scratch_(threads),
      context_{kernels_, pool_, scratch_},
      shared_nodes_(std::make_shared<std::vector<Node>>()),
      formats_{{}},
      shapes_{{Domain::image, 3, height, width}} {
  check_size(height, width);
}

Executor::Executor(const Executor& other, int threads)
    : kernels_(other.kernels_),
      pool_(threads, false),
      scratch_(threads),
      context_{kernels_, pool_, scratch_},
      shared_nodes_(other.shared_nodes_),
      formats_(other.formats_),
      shapes_(other.shapes_) {}

int Executor::value_of(const std::string& name) const {
  if (name == "image") return 0;
  for (size_t i = 0; i < nodes_.size(); i++)
    if (nodes_[i].name == name) return static_cast<int>(i) + 1;
  throw std::invalid_argument("no operation '" + name + "'");
}

const Convolution* Executor::convolution(int value) const {
  return value > 0 ? dynamic_cast<const Convolution*>(nodes_[value - 1].operation.get()) : nullptr;
}

PackedWeights Executor::packed(const std::string& name) {
  const Convolution* conv = convolution(value_of(name));
  if (!conv) throw std::invalid_argument(name + " has no packed weights");
  PackedWeights out{conv->algorithm().name, conv->nonzero(), 0, conv->packed().packed()};
  if (out.spans.size() == 1) {
    out.checksum = checksum(out.spans[0], pool_);
    return out;
  }
  std::vector<std::byte> all;
  for (const auto& span : out.spans)
    all.insert(all.end(), span.begin(), span.end());
  out.checksum = checksum(all, pool_);
  return out;
}

std::vector<std::pair<std::string, const Convolution*>> Executor::convolutions() const {
  std::vector<std::pair<std::string, const Convolution*>> out;
  for (size_t i = 0; i < nodes_.size(); i++)
    if (const Convolution* conv = convolution(static_cast<int>(i) + 1))
      out.emplace_back(nodes_[i].name, conv);
  return out;
}

size_t Executor::weight_bytes() const {
  size_t n = 0;
  std::set<const void*> counted;  // some convolutions share their weights
  for (size_t i = 0; i < nodes_.size(); i++) {
    const Convolution* conv = convolution(static_cast<int>(i) + 1);
    if (!conv || counted.insert(&conv->packed()).second) n += nodes_[i].operation->weight_bytes();
  }
  return n;
}

size_t Executor::copied_bytes() {
  size_t n = 0;
  for (size_t i = 0; height_ && i < nodes_.size(); i++)
    if (nodes_[i].operation->joins())
      n += Concat::copied_bytes(inputs_of(nodes_[i]), values_[i + 1]);
  return n;
}

size_t Executor::converted_bytes() const {
  size_t n = 0;
  for (size_t i = 0; height_ && i < nodes_.size(); i++)
    if (dynamic_cast<const Convert*>(nodes_[i].operation.get()))
      n += sparsedet::converted_bytes(values_[nodes_[i].inputs[0]], values_[i + 1]);
  return n;
}

// ---------------------------------------------------------------------------------------- running

std::vector<Value*> Executor::inputs_of(const Node& node) {
  std::vector<Value*> inputs;
  for (int v : node.inputs)
    inputs.push_back(&values_[v]);
  return inputs;
}

// Notes that something else is written there: no map is clean that has a part of it.
void Executor::overwrite(const float* data, size_t floats) {
  std::erase_if(clean_, [&](const FeatureMap& m) {
    return m.data < data + floats && data < m.data + m.size();
  });
}

// Sets what is around a feature map's pixels to zero where a reader relies on it, unless this very
// map was the last user of its bytes: tensors share memory.
void Executor::prepare_border(const FeatureMap& map) {
  for (const FeatureMap& m : clean_)
    if (m.data == map.data && m.channels == map.channels && m.height == map.height &&
        m.width == map.width && m.border == map.border && m.type == map.type &&
        m.quantization.zero_point == map.quantization.zero_point && m.margin() == map.margin())
      return;
  overwrite(map.data, map.size());
  if (!map.beside) return;
  clear_border(context_, map);
  clean_.push_back(map);
}

// first, count: the RoIs in flight, of a loop.
void Executor::execute(int node, int first, int count) {
  Timer timer(timings_, nodes_[node].name);
  const std::vector<Value*> inputs = inputs_of(nodes_[node]);
  if (const float* scratch = node_scratch_[node])
    overwrite(scratch, nodes_[node].operation->scratch_floats(values_[node + 1]));
  try {
    nodes_[node].operation->run(
        context_, {inputs, values_[node + 1], first, count, node_scratch_[node], prepared_[node]});
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(nodes_[node].name + ": " + error.what());
  }
  if (checked_) check_finite(node, count);
}

// An operation may hide what it, or an earlier one, did: max(NaN, 0) is 0. Of a convolution the CPU's
// note tells, too; not where exp(), which may become infinite on the way to 0, is its end.
void Executor::check_finite(int node, int count) {
  const Value& value = values_[node + 1];
  const Convolution* conv = convolution(node + 1);
  const auto end = conv ? conv->problem().shape.activation : Activation::sigmoid;
  if (pool_.take_overflow() && (end == Activation::none || end == Activation::relu))
    throw std::invalid_argument(nodes_[node].name + " computes NaN or infinity");
  if (value.shape.domain != Domain::map && value.shape.domain != Domain::rois) return;
  Tensor made;
  take(value, count, made);
  for (const float x : made.data)
    if (!std::isfinite(x))
      throw std::invalid_argument(nodes_[node].name + " computes NaN or infinity");
}

void Executor::run_node(int node, const Part* part) {
  const int value = node + 1;
  Value& out = values_[value];
  const bool given = part && part->given.count(value);
  if (part && !given && !part->needed[node]) return;
  if (out.shape.domain == Domain::map && nodes_[node].operation->view() < 0)
    prepare_border(values_[places_[value].root].map);
  if (given) {
    give(out, *part->given.at(value), 0, 0);
  } else {
    execute(node, 0, 0);
  }
  if (part && part->wanted.count(value)) take(out, 0, *part->wanted.at(value));
}

// The RoIs in flight: operations run on all of them, one after the other.
void Executor::run_block(const Loop& loop, int first, int count, const Part* part) {
  for (int node = loop.first; node < loop.last; node++) {
    const int value = node + 1;
    const bool given = part && part->given.count(value);
    if (part && !given && !part->needed[node]) continue;
    Value& out = values_[value];
    if (out.shape.domain == Domain::rois) out.rois.blocks = divide_up(count, out.rois.lanes);
    if (given) {
      give(out, *part->given.at(value), first, count);
    } else {
      execute(node, first, count);
    }
    if (tables_[value])
      read_rois(out.rois, count, out.table.data() + size_t(first) * out.shape.channels);
    if (part && part->wanted.count(value)) take(out, count, *part->wanted.at(value));
  }
}

// Number of RoIs: that of the boxes, or of RoIs that are given.
int Executor::count_of(const Loop& loop, const Part* part) const {
  const Value& boxes = values_[loop.boxes];
  const size_t all =
      boxes.shape.domain == Domain::rows ? boxes.detections.size() : boxes.boxes.size();
  if (!part) return static_cast<int>(all);
  bool known = part->given.count(loop.boxes) || part->needed[loop.boxes - 1];
  size_t count = known ? all : 0;
  for (int node = loop.first; node < loop.last; node++) {
    const auto given = part->given.find(node + 1);
    if (given == part->given.end()) continue;
    const size_t rois = given->second->shape[0];
    if (known && rois != count)
      throw std::invalid_argument(nodes_[node].name + ": " + std::to_string(rois) +
                                  " RoIs are given, expected " + std::to_string(count));
    known = true;
    count = rois;
  }
  return static_cast<int>(count);
}

void Executor::run_loop(const Loop& loop, const Part* part) {
  const int count = count_of(loop, part);
  for (int value = loop.first + 1; value <= loop.last; value++) {
    const Shape& s = values_[value].shape;
    if (tables_[value]) values_[value].table.assign(size_t(count) * s.channels, 0.0f);
    if (s.domain == Domain::masks)
      values_[value].masks.assign(size_t(count) * s.height * s.width, 0.0f);
  }
  if (count == 0) return;
  clean_.clear();  // what is prepared, and RoIs, overwrite borders from here on
  for (int node = loop.first; node < loop.last; node++)
    if (prepared_[node] && (!part || part->needed[node])) {
      Timer timer(timings_, "transpose");
      nodes_[node].operation->prepare(context_, inputs_of(nodes_[node]), prepared_[node]);
    }
  for (int first = 0; first < count; first += loop.in_flight)
    run_block(loop, first, std::min(loop.in_flight, count - first), part);
}

void Executor::run_nodes(const Part* part) {
  timings_.clear();
  auto loop = loops_.begin();
  for (int node = 0; node < static_cast<int>(nodes_.size());) {
    if (loop != loops_.end() && loop->first == node) {
      run_loop(*loop, part);
      node = loop++->last;
    } else {
      run_node(node++, part);
    }
  }
}

template <class T>
const std::vector<Detection>& Executor::run(const T* image, int height, int width,
                                            std::pair<int, int> content, bool checked) {
  int rows = static_cast<int>(nodes_.size());
  if (shapes_[rows].domain == Domain::masks) rows = nodes_.back().inputs[1];
  if (shapes_[rows].domain != Domain::rows)
    throw std::invalid_argument("the graph does not end in detections");
  plan(height, width);
  values_[0].content_height = content.first;
  values_[0].content_width = content.second;
  values_[0].pixels = image;
  values_[0].float_pixels = std::is_same_v<T, float>;
  checked_ = checked;
  pool_.take_overflow();
  run_nodes(nullptr);
  overflowed_ = pool_.take_overflow();
  return values_[rows].detections;
}

Tensor Executor::masks() const {
  const Shape& s = shapes_.back();
  if (s.domain != Domain::masks) throw std::invalid_argument("the graph does not end in masks");
  const size_t height = s.height, width = s.width;
  Tensor out;
  if (height_) out.data = values_.back().masks;
  out.shape = {out.data.size() / (height * width), height, width};
  return out;
}

template const std::vector<Detection>& Executor::run(const uint8_t*, int, int, std::pair<int, int>,
                                                     bool);
template const std::vector<Detection>& Executor::run(const float*, int, int, std::pair<int, int>,
                                                     bool);

}  // namespace sparsedet
