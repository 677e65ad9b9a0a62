#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "bindings/bindings.h"
#include "images/jpeg_check.h"
#include "images/unpack.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace sparsedet {

void bind_images(nb::module_& m) {
  m.def(
      "check_jpeg",
      [](nb::bytes data, uint64_t max_pixels, bool copy) {
        JpegCheck check;
        {
          nb::gil_scoped_release release;
          check =
              check_jpeg(static_cast<const uint8_t*>(data.data()), data.size(), max_pixels, copy);
        }
        return nb::make_tuple(check.damage, check.unsupported, check.odd,
                              nb::bytes(check.clean.data(), check.clean.size()), check.exif_start,
                              check.exif_end);
      },
      "data"_a, "max_pixels"_a, "copy"_a);
  m.def(
      "unpack",
      [](const std::string& packing, nb::bytes data, size_t expected, int first_bits) {
        std::string out;
        {
          nb::gil_scoped_release release;
          const auto* bytes = static_cast<const uint8_t*>(data.data());
          if (packing == "lzw")
            out = unpack_tiff_lzw(bytes, data.size(), expected);
          else if (packing == "gif")
            out = unpack_gif_lzw(bytes, data.size(), expected, first_bits);
          else if (packing == "packbits")
            out = unpack_packbits(bytes, data.size(), expected);
          else
            throw std::invalid_argument("packing: unknown value '" + packing + "'");
        }
        return nb::bytes(out.data(), out.size());
      },
      "packing"_a, "data"_a, "expected"_a, "first_bits"_a = 8);
}

}  // namespace sparsedet
