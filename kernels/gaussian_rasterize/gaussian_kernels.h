// The kernels of projection.cpp, for instruction_sets.h.
#include "../simd.h"

#include "project_kernels.h"
#include "shade_kernels.h"
