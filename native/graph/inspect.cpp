// Parts of a run, for tests and calibration: values as plain arrays.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "graph/executor.h"

namespace sparsedet {

namespace {

std::vector<size_t> shape_of(const Value& value, int count) {
  const Shape& s = value.shape;
  const auto size = [](int n) { return static_cast<size_t>(n); };
  switch (s.domain) {
    case Domain::image:
      return {size(s.height), size(s.width), 3};
    case Domain::map:
      return {size(s.channels), size(s.height), size(s.width)};
    case Domain::rois:
      return {size(count), size(s.channels), size(s.height), size(s.width)};
    case Domain::boxes:
      return {size(count), 4};
    case Domain::rows:
      return {size(count), 7};
    case Domain::masks:
      return {size(count), size(s.height), size(s.width)};
  }
  return {};
}

size_t floats_of(const std::vector<size_t>& shape) {
  size_t n = 1;
  for (size_t length : shape)
    n *= length;
  return n;
}

void fit(bool fits, const std::string& name) {
  if (!fits) throw std::invalid_argument(name + ": the array has the wrong shape");
}

// Throws std::invalid_argument unless each row [7] has a label.
void check_labels(const Tensor& rows, const std::string& name) {
  for (size_t i = 0; i < rows.shape[0]; i++) {
    const float label = rows.data[7 * i + 1];
    if (!(label >= 1 && label <= 1 << 24) || label != std::floor(label))
      throw std::invalid_argument(name + ": a row has no label");
  }
}

// The detections of rows [count][7]; height, width: of the network input.
std::vector<Detection> detections_of(const Tensor& rows, int height, int width) {
  std::vector<Detection> out;
  const auto h = static_cast<float>(height), w = static_cast<float>(width);
  for (size_t i = 0; i < rows.shape[0]; i++) {
    const float* row = &rows.data[7 * i];
    out.push_back(
        {static_cast<int>(row[1]), row[2], {row[3] * w, row[4] * h, row[5] * w, row[6] * h}});
  }
  return out;
}

}  // namespace

// Reads a value from an array; of RoIs and masks only [first, first + count).
void Executor::give(Value& value, const Tensor& tensor, int first, int count) {
  const Shape& s = value.shape;
  switch (s.domain) {
    case Domain::map:
      return fill_map(tensor.data.data(), s.width, value.map);
    case Domain::rois:
      return fill_rois(tensor.data.data() + size_t(first) * s.channels * s.height * s.width, count,
                       value.rois);
    case Domain::boxes:
      value.boxes.resize(tensor.shape[0]);
      for (size_t i = 0; i < value.boxes.size(); i++)
        std::copy_n(&tensor.data[4 * i], 4, value.boxes[i].begin());
      return;
    case Domain::rows:
      value.detections = detections_of(tensor, height_, width_);
      return;
    case Domain::masks: {
      const auto one = static_cast<ptrdiff_t>(s.height) * s.width;
      std::copy_n(tensor.data.begin() + first * one, count * one,
                  value.masks.begin() + first * one);
      return;
    }
    case Domain::image:
      return;
  }
}

// Appends a value to an array; of RoIs and masks those in flight.
void Executor::take(const Value& value, int count, Tensor& out) const {
  const Shape& s = value.shape;
  const size_t before = out.data.size();
  if (s.domain == Domain::map) {
    out.data.resize(before + size_t(s.channels) * s.height * s.width);
    read_map(value.map, s.width, out.data.data() + before);
  } else if (s.domain == Domain::rois) {
    out.data.resize(before + size_t(count) * s.channels * s.height * s.width);
    read_rois(value.rois, count, out.data.data() + before);
  } else if (s.domain == Domain::boxes) {
    for (const Box& box : value.boxes)
      out.data.insert(out.data.end(), box.begin(), box.end());
  } else if (s.domain == Domain::masks) {  // those before are in the array already
    const auto from = value.masks.begin() + static_cast<ptrdiff_t>(before);
    out.data.insert(out.data.end(), from, from + ptrdiff_t(count) * s.height * s.width);
  } else {
    for (const Detection& d : value.detections)
      append_row(d, height_, width_, out.data);
  }
}

std::vector<Tensor> Executor::run_between(const std::map<std::string, Tensor>& given,
                                          const std::vector<std::string>& wanted) {
  if (!height_) throw std::invalid_argument("call plan() with the size of the network input first");
  Part part;
  part.needed.assign(nodes_.size(), false);
  for (const auto& [name, tensor] : given) {
    const int value = value_of(name);
    const Value& v = values_[value];
    const bool counted = v.shape.domain != Domain::image && v.shape.domain != Domain::map;
    const int count = counted && !tensor.shape.empty() ? static_cast<int>(tensor.shape[0]) : 0;
    fit(tensor.shape == shape_of(v, count), name);
    if (v.shape.domain == Domain::rows) check_labels(tensor, name);
    if (value > 0) part.given[value] = &tensor;
  }
  values_[0].pixels = nullptr;
  if (const auto image = given.find("image"); image != given.end()) {
    values_[0].pixels = image->second.data.data();
    values_[0].float_pixels = true;
  }
  std::vector<Tensor> out(wanted.size());
  std::vector<int> open;
  for (size_t i = 0; i < wanted.size(); i++) {
    const int value = value_of(wanted[i]);
    if (value == 0 || part.wanted.count(value))
      throw std::invalid_argument(wanted[i] + " cannot be wanted");
    part.wanted[value] = &out[i];
    open.push_back(value);
  }
  while (!open.empty()) {
    const int value = open.back();
    open.pop_back();
    if (value == 0 || part.given.count(value) || part.needed[value - 1]) continue;
    part.needed[value - 1] = true;
    open.insert(open.end(), nodes_[value - 1].inputs.begin(), nodes_[value - 1].inputs.end());
  }
  checked_ = false;
  run_nodes(&part);
  for (const auto& [value, tensor] : part.wanted) {
    const size_t one = std::max<size_t>(floats_of(shape_of(values_[value], 1)), 1);
    tensor->shape = shape_of(values_[value], static_cast<int>(tensor->data.size() / one));
  }
  return out;
}

Tensor Executor::run_operation(const std::string& name, const std::vector<Tensor>& inputs) {
  const int node = value_of(name) - 1;
  if (node < 0) throw std::invalid_argument("the image is no operation");
  const Operation& operation = *nodes_[node].operation;
  const std::vector<int>& sources = nodes_[node].inputs;
  if (inputs.empty() || inputs.size() > sources.size())
    throw std::invalid_argument(name + ": wrong number of inputs");
  std::vector<Shape> shapes;
  for (size_t i = 0; i < inputs.size(); i++) {
    const Shape& known = shapes_[sources[i]];
    const std::vector<size_t>& s = inputs[i].shape;
    const bool rois = known.domain == Domain::rois;
    fit((rois || known.domain == Domain::map) && s.size() == 4 && s[0] >= 1 &&
            (rois || s[0] == 1) && s[1] == size_t(known.channels) &&
            std::all_of(s.begin(), s.end(), [](size_t n) { return n >= 1 && n <= 1 << 20; }) &&
            inputs[i].data.size() == floats_of(s),
        name);
    shapes.push_back({known.domain, static_cast<int>(s[1]), static_cast<int>(s[2]),
                      static_cast<int>(s[3]), static_cast<int>(s[0])});
  }
  const Shape out_shape = [&] {
    try {
      return operation.shape(shapes);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(name + ": " + error.what());
    }
  }();
  fit(out_shape.height >= 1 && out_shape.width >= 1, name);
  while (shapes.size() < sources.size())
    shapes.push_back(out_shape);  // zeros are added
  std::vector<Value> values(sources.size() + 1);
  std::vector<Arena> memory(values.size() + 1);
  std::vector<Value*> pointers;
  for (size_t i = 0; i < values.size(); i++) {
    const bool is_out = i == sources.size();
    Value& v = values[i];
    v.shape = is_out ? out_shape : shapes[i];
    v.format = formats_[is_out ? node + 1 : sources[i]];
    lay_out(v, is_out ? Needs{} : operation.needs(shapes, i),
            divide_up(v.shape.count, kVectors * kernels_.lanes));
    const bool map = v.shape.domain == Domain::map;
    memory[i].reserve(map ? v.map.size() : v.rois.size());
    v.map.data = v.rois.data = memory[i].data();
    if (map) clear_border(context_, v.map);
    if (is_out) break;
    pointers.push_back(&v);
    const Tensor zeros{{}, std::vector<float>(floats_of(shape_of(v, v.shape.count)))};
    give(v, i < inputs.size() ? inputs[i] : zeros, 0, v.shape.count);
  }
  Value& out = values.back();
  if (const int first = operation.view(); first >= 0) {
    if (out_shape.domain == Domain::map)
      out.map = values[0].map.view(first, out_shape.channels);
    else
      out.rois = values[0].rois.view(first, out_shape.channels);
  }
  memory.back().reserve(operation.scratch_floats(out) + 1);
  operation.run(context_, {pointers, out, 0, out_shape.count, memory.back().data(), nullptr});
  Tensor result;
  take(out, out_shape.count, result);
  result.shape = {static_cast<size_t>(out_shape.count), static_cast<size_t>(out_shape.channels),
                  static_cast<size_t>(out_shape.height), static_cast<size_t>(out_shape.width)};
  return result;
}

}  // namespace sparsedet
