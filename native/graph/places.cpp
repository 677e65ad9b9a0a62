// Executor::find_places: values that lie in the memory of another one.
#include <utility>

#include "graph/executor.h"

namespace sparsedet {

// The value `root`, with all that lies in it, lies in the memory of another one from now on.
void Executor::absorb(int root, const Place& place) {
  for (Place& p : places_)
    if (p.root == root) p = {place.root, p.first + place.first};
}

// Puts what a node joins into its output, where it is nowhere else yet: a whole value whose channels
// are all joined, side by side. Slices of one value count as its channels.
void Executor::join(int node, const std::vector<Shape>& shapes) {
  const int value = node + 1, per_element = channels_per_element(formats_[value].type);
  const std::vector<int>& inputs = nodes_[node].inputs;
  std::vector<std::pair<int, int>> channels;  // of the output: root, and its channel
  for (int v : inputs)
    for (int c = 0; c < shapes[v].channels; c++)
      channels.emplace_back(places_[v].root, places_[v].first + c);
  const int all = static_cast<int>(channels.size());
  int first = 0;
  for (int v : inputs) {
    const int root = places_[v].root, base = first - places_[v].first;
    const int count = shapes[root].channels;
    first += shapes[v].channels;
    bool fits = shapes[root].domain == Domain::map && root != places_[value].root && base >= 0 &&
                base + count <= all && base % per_element == 0 &&
                (count % per_element == 0 || base + count == all);
    for (int c = 0; fits && c < count; c++)
      fits = channels[base + c] == std::pair{root, c};
    if (fits) absorb(root, {places_[value].root, places_[value].first + base});
  }
  // All inputs may lie side by side in a larger value: the output is there already.
  const Place begin = places_[inputs[0]];
  bool there = places_[value].root == value && begin.root != value;
  first = 0;
  for (int v : inputs) {
    there = there && places_[v].root == begin.root && places_[v].first == begin.first + first;
    first += shapes[v].channels;
  }
  if (there) absorb(value, begin);
}

// From the last node to the first: what is joined again and again lies in the largest output.
void Executor::find_places(const std::vector<Shape>& shapes) {
  places_.clear();
  for (int v = 0; v < static_cast<int>(shapes.size()); v++) {
    const int first = v > 0 ? nodes_[v - 1].operation->view() : -1;
    if (first < 0) {
      places_.push_back({v, 0});
    } else {
      const Place& of = places_[nodes_[v - 1].inputs[0]];
      places_.push_back({of.root, of.first + first});
    }
  }
  for (int node = static_cast<int>(nodes_.size()) - 1; node >= 0; node--)
    if (nodes_[node].operation->joins()) join(node, shapes);
}

}  // namespace sparsedet
