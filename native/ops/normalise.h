// Network input -> feature map: (pixel - mean) / std of each colour.
#pragma once
#include "ops/operation.h"

namespace sparsedet {

struct NormaliseAttributes {
  float mean[3], std[3];  // BGR
  bool rgb;               // the channels of the map are R, G, B; else B, G, R
  bool pixel_pairs;       // bfloat16: ElementType::pixels, else float32
};

class Normalise : public Operation {
 public:
  explicit Normalise(const NormaliseAttributes& attributes) : a_(attributes) {}
  Shape shape(std::span<const Shape> inputs) const override;
  Format format(std::span<const Format>) const override {
    return {a_.pixel_pairs ? ElementType::pixels : ElementType::float32};
  }
  void run(Context& context, const Step& step) const override;

 private:
  NormaliseAttributes a_;
};

// As float32 or as pairs of pixels.
template <class T>
void normalise(Context& context, const T* pixels, int width, const float mean[3],
               const float std[3], bool rgb, const FeatureMap& out);

}  // namespace sparsedet
