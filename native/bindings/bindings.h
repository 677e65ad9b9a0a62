// What each file of this folder adds to the module.
#pragma once
#include <nanobind/nanobind.h>

#include "ops/operations.h"

namespace sparsedet {

void bind_images(nanobind::module_& module);
void bind_engine(nanobind::module_& module);

// An operation from its dictionary: name, kind, inputs, and the attributes of its kind, all of them
// and no others. Throws std::invalid_argument.
OperationSpec to_spec(nanobind::dict values);

}  // namespace sparsedet
