#pragma once
#include <string>

#include "kernels/kernels.h"

// Tests the int8 kernels of a table that has them; prints a line for each group of cases.
bool test_int8(const sparsedet::Kernels& kernels);
