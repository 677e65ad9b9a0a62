// Maps one after the other along the channels. The memory plan puts them there where it can, so that
// nothing is copied.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

struct ConcatAttributes {};

class Concat : public Operation {
 public:
  Shape shape(std::span<const Shape> inputs) const override;
  // Throws std::invalid_argument if an input would begin inside a packed element.
  Format format(std::span<const Format> inputs) const override;
  Needs needs(std::span<const Shape>, size_t) const override { return {0, 0, false}; }
  bool joins() const override { return true; }
  void run(Context& context, const Step& step) const override;
  // Bytes of inputs that lie elsewhere.
  static size_t copied_bytes(std::span<Value* const> inputs, const Value& out);
};

}  // namespace sparsedet
