// A device that is not there, for ONNX Runtime's CUDA provider and bisam's kernels alike; see fake_cuda.py.
//
// The provider loads, places nodes, binds and captures graphs as on a device; its own kernels do nothing. What is not here is made by
// fake_cuda.py: functions that return 0.
#define PROVIDER
#include "../src/engine/cuda/fake.c"
#include <stdio.h>

static int graphs, launches;

// The compiler here compiles nothing, so runs of elementwise operators do nothing either.
KERNEL(elementwise) { (void)a; }

__attribute__((destructor)) static void report(void) {
    if (graphs + launches + copies + waits)
        fprintf(stderr, "fake cuda: %d graphs, %d launches, %d copies, %d waits\n", graphs, launches, copies, waits);
}

static int one(void **handle) {
    static int any;
    *handle = &any;
    return 0;
}

int cudaGetDevice(int *device) { return *device = 0; }
int cudaGetDeviceCount(int *n) {
    *n = 1;
    return 0;
}
int cudaGetDeviceProperties(char *properties, int device) {
    memset(properties, 0, 700);
    return device;
}
int cudaDriverGetVersion(int *version) {
    *version = 13000;
    return 0;
}
int cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }
int cudaMallocHost(void **block, size_t bytes) { return cudaMalloc(block, bytes); }
int cudaStreamCreate(void **stream) { return one(stream); }
int cudaEventCreate(void **event) { return cudaEventCreateWithFlags(event, 2); }
int cudaStreamEndCapture(void *stream, void **graph) {
    (void)stream;
    return one(graph);
}
int cudaGraphInstantiate(void **graph) {
    graphs++;
    return one(graph);
}
int cudaGraphLaunch(void *graph, void *stream) {
    (void)graph, (void)stream;
    launches++;
    return 0;
}
const char *cudaGetErrorName(int status) { return cudaGetErrorString(status); }
const char *cublasGetStatusName(int status) { return cudaGetErrorString(status); }
const char *cublasGetStatusString(int status) { return cudaGetErrorString(status); }
int cublasCreate_v2(void **handle) { return one(handle); }
int cublasLtCreate(void **handle) { return one(handle); }
int cudnnCreate(void **handle) { return one(handle); }
size_t cudnnGetVersion(void) { return 91300; }
void **__cudaRegisterFatBinary(void *binary) {
    static void *handle;
    (void)binary;
    return &handle;
}
