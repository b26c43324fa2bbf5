/* Test-only: found before the toolkit's header of this name where .cu files are compiled for the CPU. The host half is
 * the toolkit's own; the device half, which only nvcc knows, is ours. */
#pragma once

#ifndef CUDA_ON_CPU
#error "this header is for builds with -DCUDA_ON_CPU"
#endif

#include_next <cuda_runtime.h>

#include <device.h>
