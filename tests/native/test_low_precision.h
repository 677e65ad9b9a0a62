#pragma once
#include "kernels/kernels.h"

// Prints a line for layers and one for the network; false if a case failed.
bool test_low_precision(const sparsedet::Kernels& kernels, bool int8);
