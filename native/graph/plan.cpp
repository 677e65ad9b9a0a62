// Executor::plan: shapes, zeros around maps, lifetimes and memory for one size of the network
// input. Time 0 is the network input, node i has time i + 1.
#include <algorithm>
#include <stdexcept>

#include "graph/executor.h"

namespace sparsedet {

// Whether a loop over RoIs makes the value.
static bool in_loop(const Shape& shape) {
  return shape.domain == Domain::rois || shape.domain == Domain::masks;
}

// Loops over RoIs: neighbouring nodes whose values are RoIs, or masks, of the same boxes or rows.
std::vector<Executor::Loop> Executor::find_loops() const {
  std::vector<Loop> loops;
  std::vector<int> boxes_of(nodes_.size() + 1, -1), loop_of(nodes_.size() + 1, -1);
  for (int node = 0; node < static_cast<int>(nodes_.size()); node++) {
    const std::vector<int>& inputs = nodes_[node].inputs;
    for (int v : inputs)
      for (int other : inputs) {
        const Domain domain = shapes_[other].domain;
        if (boxes_of[v] >= 0 && other != boxes_of[v] &&
            (domain == Domain::boxes || domain == Domain::rows))
          throw std::invalid_argument(nodes_[node].name + ": reads RoIs of other boxes");
      }
    if (!in_loop(shapes_[node + 1])) continue;
    const auto of_rois = std::find_if(inputs.begin(), inputs.end(),
                                      [&](int v) { return shapes_[v].domain == Domain::rois; });
    const int boxes = of_rois == inputs.end() ? inputs.back() : boxes_of[*of_rois];
    if (loops.empty() || loops.back().last != node || loops.back().boxes != boxes)
      loops.push_back({node, node, boxes, 0});
    loops.back().last = node + 1;
    boxes_of[node + 1] = boxes;
    loop_of[node + 1] = static_cast<int>(loops.size()) - 1;
    for (int v : inputs)
      if (loop_of[v] >= 0 && loop_of[v] != loop_of[node + 1])
        throw std::invalid_argument(nodes_[node].name +
                                    ": reads RoIs that an earlier loop over RoIs made");
  }
  return loops;
}

std::vector<Shape> Executor::find_shapes(int height, int width) const {
  std::vector<Shape> shapes{{Domain::image, 3, height, width}};
  for (const Node& node : nodes_) {
    const Shape shape = node.operation->shape(pick(shapes, node.inputs));
    const bool sized = shape.domain == Domain::map || shape.domain == Domain::rois;
    if (sized && (shape.height < 1 || shape.width < 1))
      throw std::invalid_argument("network input " + std::to_string(height) + "x" +
                                  std::to_string(width) + " is too small: " + node.name +
                                  " would be empty");
    shapes.push_back(shape);
  }
  return shapes;
}

// blocks: blocks of RoIs that are in flight.
void Executor::lay_out(Value& value, const Needs& needs, int blocks) const {
  const Shape& s = value.shape;
  const Format& f = value.format;
  if (s.domain == Domain::map) {
    const int elements = f.type == ElementType::pixels ? divide_up(s.width, 2) : s.width;
    value.map = {nullptr,        s.channels, s.height,       elements,     needs.border,
                 kernels_.lanes, f.type,     f.quantization, needs.padding};
    value.map.beside = needs.beside;
  } else if (s.domain == Domain::rois) {
    const int lanes = kVectors * kernels_.lanes;
    value.rois = {nullptr, blocks, s.channels, s.height, s.width, lanes, f.type, f.quantization};
  }
}

// Lays out the values, without memory.
void Executor::lay_out(const std::vector<Shape>& shapes) {
  // Beside float32 there may be earlier values of this network. As numbers, bytes of other formats
  // may be anything, and the CPU would note an overflow of lanes that nobody looks at.
  const bool others = std::any_of(formats_.begin(), formats_.end(), [](const Format& format) {
    return format.type != ElementType::float32;
  });
  std::vector<Needs> needs(shapes.size(), Needs{0, 0, others});
  for (const Node& node : nodes_)
    for (size_t i = 0; i < node.inputs.size(); i++) {
      const Needs n = node.operation->needs(pick(shapes, node.inputs), i);
      Needs& all = needs[root_of(node.inputs[i])];
      all = {std::max(all.border, n.border), std::max(all.padding, n.padding),
             all.beside || n.beside};
    }
  values_.assign(shapes.size(), {});
  values_[0].content_height = shapes[0].height;
  values_[0].content_width = shapes[0].width;
  for (size_t v = 0; v < shapes.size(); v++) {
    values_[v].shape = shapes[v];
    values_[v].format = formats_[v];
    lay_out(values_[v], needs[root_of(static_cast<int>(v))], 1);
  }
}

// Time at which each value, with its views, is read last. What a loop reads from outside it reads
// before it begins: operations on RoIs prepare feature maps.
std::vector<int> Executor::last_reads() const {
  std::vector<int> last(values_.size());
  for (size_t v = 0; v < last.size(); v++)
    last[v] = static_cast<int>(v);
  for (int node = 0; node < static_cast<int>(nodes_.size()); node++) {
    int start = node;
    for (const Loop& loop : loops_)
      if (loop.first <= node && node < loop.last) start = loop.first;
    for (int v : nodes_[node].inputs) {
      const int root = root_of(v), inside = root > start ? node : start;
      last[root] = std::max(last[root], inside + 1);
    }
  }
  return last;
}

// The value whose memory a node's output takes, or -1.
int Executor::overwritten(int node, const std::vector<int>& last) const {
  const Value& out = values_[node + 1];
  const std::vector<int>& inputs = nodes_[node].inputs;
  for (size_t i = 0; i < inputs.size(); i++) {
    const Value& in = values_[inputs[i]];
    const bool same_loop = out.shape.domain != Domain::rois || in.shape.domain == Domain::rois;
    // A convolution that adds its own input still reads it while it writes.
    const auto reads =
        std::count_if(inputs.begin(), inputs.end(), [&](int v) { return root_of(v) == inputs[i]; });
    if (reads > 1) continue;
    if (nodes_[node].operation->in_place(i) && root_of(inputs[i]) == inputs[i] && same_loop &&
        last[inputs[i]] == node + 1 && in.shape.domain == out.shape.domain &&
        in.format.type == out.format.type && in.map.border == out.map.border &&
        in.map.margin() == out.map.margin())
      return inputs[i];
  }
  return -1;
}

void Executor::place_values(size_t most) {
  std::vector<int> last = last_reads();
  std::vector<int> memory(values_.size(), -1);  // value whose buffer each value has
  for (int node = 0; node < static_cast<int>(nodes_.size()); node++) {
    const int value = node + 1;
    if (root_of(value) != value) continue;
    const int taken = overwritten(node, last);
    memory[value] = taken < 0 ? value : memory[taken];
    last[memory[value]] = std::max(last[memory[value]], last[value]);
  }
  std::vector<Buffer> buffers(values_.size()), prepared(nodes_.size()), scratch(nodes_.size());
  std::vector<Buffer*> all;
  const auto add = [&](Buffer& buffer, size_t floats, int from, int to) {
    buffer = {floats, from, to};
    if (floats > 0) all.push_back(&buffer);
  };
  std::vector<int> from(values_.size());  // time at which something is written first
  for (int v = static_cast<int>(values_.size()) - 1; v > 0; v--)
    from[root_of(v)] = v;
  for (int v = 1; v < static_cast<int>(values_.size()); v++) {
    const Domain domain = values_[v].shape.domain;
    if (memory[v] == v && (domain == Domain::map || domain == Domain::rois))
      add(buffers[v], domain == Domain::map ? values_[v].map.size() : values_[v].rois.size(),
          from[v], last[v]);
  }
  for (const Loop& loop : loops_)
    for (int node = loop.first; node < loop.last; node++)
      add(prepared[node], nodes_[node].operation->prepared_floats(inputs_of(nodes_[node])),
          loop.first + 1, loop.last);
  for (int node = 0; node < static_cast<int>(nodes_.size()); node++)
    add(scratch[node], nodes_[node].operation->scratch_floats(values_[node + 1]), node + 1,
        node + 1);
  const size_t floats = place(all);
  if (floats > most / sizeof(float))
    throw std::invalid_argument("needs " + std::to_string(floats * sizeof(float) / 1'000'000) +
                                " MB for its activations, but " + std::to_string(most / 1'000'000) +
                                " MB are free");
  arena_.reserve(floats);

  const auto address = [&](const Buffer& b) {
    return b.floats ? arena_.data() + b.offset : nullptr;
  };
  prepared_.clear();
  node_scratch_.clear();
  for (size_t node = 0; node < nodes_.size(); node++) {
    prepared_.push_back(address(prepared[node]));
    node_scratch_.push_back(address(scratch[node]));
    const int value = static_cast<int>(node) + 1;
    if (memory[value] >= 0)
      values_[value].map.data = values_[value].rois.data = address(buffers[memory[value]]);
  }
  for (int v = 1; v < static_cast<int>(values_.size()); v++) {
    const auto [root, first] = places_[v];
    Value& value = values_[v];
    if (root == v) continue;
    if (value.shape.domain == Domain::map)
      value.map = values_[root].map.view(first, value.shape.channels);
    if (value.shape.domain == Domain::rois)
      value.rois = values_[root].rois.view(first, value.shape.channels);
  }
}

// Blocks of RoIs that each loop runs at a time: all of them for many threads, which share them;
// else so many that the largest convolution has enough output cells to sweep its weights over, if
// they take little memory.
void Executor::choose_blocks() {
  constexpr size_t little = (size_t{16} << 20) / sizeof(float), enough = 25;
  for (Loop& loop : loops_) {
    size_t largest_value = 1, cells = enough;
    int64_t most_weights = 0;
    for (int node = loop.first; node < loop.last; node++) {
      const Value& value = values_[node + 1];
      largest_value = std::max(largest_value, value.rois.size());  // of one block
      const Convolution* conv = convolution(node + 1);
      if (!conv || conv->problem().shape.weights() <= most_weights) continue;
      most_weights = conv->problem().shape.weights();
      cells = size_t(value.shape.height) * value.shape.width;
    }
    const int lanes = values_[loop.first + 1].rois.lanes;
    const size_t all = divide_up(values_[loop.first + 1].shape.count, lanes);
    const size_t few = std::min({(enough + cells - 1) / cells, little / largest_value, all});
    const int blocks = static_cast<int>(pool_.size() > 4 ? all : std::max<size_t>(few, 1));
    for (int node = loop.first; node < loop.last; node++)
      values_[node + 1].rois.blocks = blocks;
    loop.in_flight = blocks * lanes;
  }
}

void Executor::check_size(int height, int width) {
  if (std::min(height, width) < 1 || std::max(height, width) > 1 << 20)
    throw std::invalid_argument("network input " + std::to_string(height) + "x" +
                                std::to_string(width) + " is out of range");
}

void Executor::plan(int height, int width, size_t most) {
  check_size(height, width);
  if (height == height_ && width == width_) return;
  height_ = width_ = 0;
  pack_scratch_ = {};
  clean_.clear();
  const std::vector<Shape> shapes = find_shapes(height, width);
  find_places(shapes);
  lay_out(shapes);
  loops_ = find_loops();
  tables_.assign(values_.size(), false);
  for (const Node& node : nodes_)
    for (int v : node.inputs)
      if (values_[v].shape.domain == Domain::rois &&
          !in_loop(values_[&node - nodes_.data() + 1].shape))
        tables_[v] = true;
  choose_blocks();
  place_values(most);
  height_ = height;
  width_ = width;
}

}  // namespace sparsedet
