/* The emulated device's properties, and errors. Its limits are those of an H100 where a program could depend on them;
 * few multiprocessors, so that grids sized by their number stay small. */
#include "tests/cuda_on_cpu/internal.h"

#include <stdio.h>
#include <string.h>

namespace emulator {

enum { MULTIPROCESSORS = 4, RUNTIME_VERSION = 13000 };

static cudaError_t last_error = cudaSuccess;

cudaError_t report_error(cudaError_t error) {
    last_error = error;
    return error;
}

struct AttributeRow {
    cudaDeviceAttr attribute;
    int value;
};

static const AttributeRow attributes[] = {
    {cudaDevAttrMultiProcessorCount, MULTIPROCESSORS},
    {cudaDevAttrWarpSize, 32},
    {cudaDevAttrMaxThreadsPerBlock, 1024},
    {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
    {cudaDevAttrMaxSharedMemoryPerBlock, SHARED_WITHOUT_ASKING},
    {cudaDevAttrMaxSharedMemoryPerBlockOptin, SHARED_LIMIT},
    {cudaDevAttrMaxSharedMemoryPerMultiprocessor, SHARED_LIMIT + 1024},
    {cudaDevAttrMaxRegistersPerBlock, 65536},
    {cudaDevAttrL2CacheSize, 50 << 20},
};

struct ErrorRow {
    cudaError_t error;
    const char *name, *text;
};

/* The texts of libcudart. */
static const ErrorRow errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidPitchValue, "cudaErrorInvalidPitchValue", "invalid pitch argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
};

static const ErrorRow *find_error(cudaError_t error) {
    for (const ErrorRow &row : errors)
        if (row.error == error) return &row;
    return nullptr;
}

} // namespace emulator

using namespace emulator;

extern "C" {

/* ---- device ------------------------------------------------------------------------------------------------------ */

/* Without a driver the real function leaves the count as it is, too. */
cudaError_t cudaGetDeviceCount(int *count) {
    if (cuda_on_cpu.device_count_error) return report_error(static_cast<cudaError_t>(cuda_on_cpu.device_count_error));
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    return device == 0 ? cudaSuccess : report_error(cudaErrorInvalidDevice);
}

cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    if (device != 0) return report_error(cudaErrorInvalidDevice);
    if (attribute == cudaDevAttrComputeCapabilityMajor || attribute == cudaDevAttrComputeCapabilityMinor) {
        bool major = attribute == cudaDevAttrComputeCapabilityMajor;
        *value = major ? cuda_on_cpu.capability / 10 : cuda_on_cpu.capability % 10;
        return cudaSuccess;
    }
    for (const AttributeRow &row : attributes)
        if (row.attribute == attribute) {
            *value = row.value;
            return cudaSuccess;
        }
    fail("device attribute %d is not emulated; add it to device.cc", attribute);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    if (device != 0) return report_error(cudaErrorInvalidDevice);
    memset(properties, 0, sizeof *properties);
    snprintf(properties->name, sizeof properties->name, "CUDA on CPU");
    properties->major = cuda_on_cpu.capability / 10;
    properties->minor = cuda_on_cpu.capability % 10;
    properties->totalGlobalMem = static_cast<size_t>(cuda_on_cpu.memory_bytes);
    properties->multiProcessorCount = MULTIPROCESSORS;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->sharedMemPerBlock = SHARED_WITHOUT_ASKING;
    properties->sharedMemPerBlockOptin = SHARED_LIMIT;
    properties->sharedMemPerMultiprocessor = SHARED_LIMIT + 1024;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->l2CacheSize = 50 << 20;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = cuda_on_cpu.driver_version;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = RUNTIME_VERSION;
    return cudaSuccess;
}

/* ---- errors ------------------------------------------------------------------------------------------------------ */

cudaError_t cudaGetLastError() {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError() {
    return last_error;
}

const char *cudaGetErrorName(cudaError_t error) {
    const ErrorRow *row = find_error(error);
    return row ? row->name : "cudaError";
}

const char *cudaGetErrorString(cudaError_t error) {
    const ErrorRow *row = find_error(error);
    return row ? row->text : "an error that is not emulated";
}

} // extern "C"
