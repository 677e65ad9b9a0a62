#pragma once
#include "kernels/kernels.h"

// Tests the layers on feature maps with the kernels of an instruction set; prints a line.
bool test_layers(const sparsedet::Kernels& kernels);
