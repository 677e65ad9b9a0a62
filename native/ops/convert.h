// A value in another format, or some of its channels from any one on: a copy.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

struct ConvertAttributes {
  int first, channels;  // of the input; 0 channels: all from the first one on
  Format to;
};

class Convert : public Operation {
 public:
  explicit Convert(const ConvertAttributes& attributes) : a_(attributes) {}
  Shape shape(std::span<const Shape> inputs) const override;
  Format format(std::span<const Format> inputs) const override;
  void run(Context& context, const Step& step) const override;

 private:
  ConvertAttributes a_;
};

// Bytes that a conversion reads and writes.
size_t converted_bytes(const Value& in, const Value& out);

}  // namespace sparsedet
