/* Opens cublasLt and finds its entry points; see cublaslt.h. */
#include "cuda/cublaslt.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#ifdef CUDA_ON_CPU

/* The tests link stand-ins for what needs a device, and the real library for the rest. */
Status cuda_cublaslt_open(CublasLt *lt) {
    *lt = {};
#define X(name) lt->name = &::name;
    CUBLASLT_ENTRY_POINTS(X)
#undef X
    return status_ok();
}

void cuda_cublaslt_close(CublasLt *lt) {
    *lt = {};
}

#else

/* Newest first: its own header comes with this build. */
static const char *const libraries[] = {"libcublasLt.so.13", "libcublasLt.so.12"};

static Status open_library(void **library) {
    char reasons[800] = "";
    for (const char *name : libraries) {
        *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
        if (*library) return status_ok();
        const size_t used = strlen(reasons);
        snprintf(reasons + used, sizeof reasons - used, "%s%s", used ? "; " : "", dlerror());
    }
    return status_error(STATUS_DEVICE,
                        "cublasLt cannot be opened (%s); install cuBLAS of CUDA 12 or 13, or put its folder into "
                        "LD_LIBRARY_PATH",
                        reasons);
}

template <class Function> static const char *find(void *library, const char *name, Function **function) {
    *function = reinterpret_cast<Function *>(dlsym(library, name));
    return *function ? nullptr : name;
}

Status cuda_cublaslt_open(CublasLt *lt) {
    *lt = {};
    Status status = open_library(&lt->library);
    if (status.code) return status;
    const char *missing = nullptr;
#define X(name)                                                                                                        \
    if (!missing) missing = find(lt->library, #name, &lt->name);
    CUBLASLT_ENTRY_POINTS(X)
#undef X
    if (!missing) return status;
    cuda_cublaslt_close(lt);
    return status_error(STATUS_DEVICE, "this cublasLt has no %s; install cuBLAS of CUDA 12 or 13", missing);
}

void cuda_cublaslt_close(CublasLt *lt) {
    if (lt->library) dlclose(lt->library);
    *lt = {};
}

#endif
