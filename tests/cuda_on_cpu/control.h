/* What a test may choose about the emulated device, and what it may count. Plain C, for test programs. */
#pragma once

#include <stdint.h>

typedef struct {
    int device_count_error; /* cudaGetDeviceCount returns it: 35 an old or missing driver, 100 no device; 0 */
    int driver_version;     /* 13000 for CUDA 13.0; 0 without a driver */
    int capability;         /* 90 for sm_90 */
    int64_t memory_bytes;   /* all that cudaMalloc has to give */
    int64_t waits;          /* calls in which the host waited for the device: synchronizations, copies without Async,
                               cudaFree */
    int64_t launches;       /* kernels that ran */
} CudaOnCpu;

#ifdef __cplusplus
extern "C" {
#endif
extern CudaOnCpu cuda_on_cpu;
#ifdef __cplusplus
}
#endif
