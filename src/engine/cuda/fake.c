// A device that is not there: CUDA's and cuDNN's functions, as far as they are used, over memory of the host, for tests.
//
// With PROVIDER it also stands below ONNX Runtime's own CUDA provider, which calls these functions in other ways and whose kernels do
// nothing then (scripts/fake_cuda.py).
//
// Streams do everything at once. Kernels are those of kernels.cu, compiled for the CPU: the threads of a block run in turn, each until
// the next __syncthreads(). Convolutions are their definition, by what cuDNN's headers say of the descriptors.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#ifdef PROVIDER
#define REFUSED(wrong) (0 && (wrong))
#else
#define REFUSED(wrong) (wrong)
#endif

typedef struct {
    unsigned x, y;
} Index;

static Index threadIdx, blockIdx, gridDim;
static ucontext_t scheduler, threads[256];
static char stacks[256][32768];
static int over[256];

static void __syncthreads(void) {
    unsigned t = threadIdx.x;
    swapcontext(&threads[t], &scheduler);
}

// Shared memory belongs to a block, and blocks run one after the other.
#define KERNEL(name) void name(const Args a)
#define DEVICE static
#define SHARED(type, name, count) static type name[count]
#define INFINITE INFINITY

#include "args.cuh"
#include "kernels.cu"

static void (*kernel)(const Args);
static const Args *args;

static void start(void) {
    unsigned t = threadIdx.x;
    kernel(*args);
    over[t] = 1;
}

// Runs a kernel over a grid of blocks.
static void emulate(void (*f)(const Args), const Args *a, volatile unsigned blocks, volatile unsigned parts) {
    kernel = f;
    args = a;
    gridDim = (Index){blocks, parts};
    for (volatile unsigned y = 0; y < parts; y++) {
        for (volatile unsigned x = 0; x < blocks; x++) {
            blockIdx = (Index){x, y};
            for (unsigned t = 0; t < THREADS; t++) {
                over[t] = 0;
                getcontext(&threads[t]);
                threads[t].uc_stack.ss_sp = stacks[t];
                threads[t].uc_stack.ss_size = sizeof stacks[t];
                threads[t].uc_link = &scheduler;
                makecontext(&threads[t], start, 0);
            }
            for (unsigned left = THREADS; left > 0;) {
                left = 0;
                for (unsigned t = 0; t < THREADS; t++) {
                    if (over[t]) continue;
                    threadIdx = (Index){t, 0};
                    swapcontext(&scheduler, &threads[t]);
                    left += !over[t];
                }
            }
        }
    }
}

// ---- The runtime.

static int copies, waits;

int cudaSetDevice(int device) { return device == 0 ? 0 : 101; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1024;
    return device;
}
const char *cudaGetErrorString(int status) { return status == 101 ? "invalid device ordinal" : "a fake error"; }
int cudaMalloc(void **block, size_t bytes) {
    if (bytes > (size_t)1 << 40) return 2;
    *block = malloc(bytes);
    return *block ? 0 : 2;
}
int cudaFree(void *block) {
    free(block);
    return 0;
}
int cudaHostAlloc(void **block, size_t bytes, unsigned flags) {
    (void)flags;
    return cudaMalloc(block, bytes);
}
int cudaFreeHost(void *block) { return cudaFree(block); }
int cudaMemsetAsync(void *block, int value, size_t bytes, void *stream) {
    if (REFUSED(!stream)) return 1;
    memset(block, value, bytes);
    return 0;
}
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    if (REFUSED(kind != 4 || !stream)) return 1;
    copies++;
    memcpy(to, from, bytes);
    return 0;
}
int cudaStreamCreateWithFlags(void **stream, unsigned flags) {
    *stream = malloc(1);
    return REFUSED(flags != 1);
}
int cudaStreamSynchronize(void *stream) {
    waits++;
    return REFUSED(!stream);
}
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) { return REFUSED(!stream || !event || flags); }
int cudaEventCreateWithFlags(void **event, unsigned flags) {
    *event = malloc(1);
    return REFUSED(flags != 2);
}
int cudaEventRecord(void *event, void *stream) { return REFUSED(!stream || !event); }
int cudaEventSynchronize(void *event) {
    return REFUSED(!event);
}
int cudaEventDestroy(void *event) { return cudaFree(event); }
int cudaMemGetInfo(size_t *left, size_t *all) {
    *left = *all = (size_t)1 << 34;
    return 0;
}

// ---- The driver, and a compiler whose image is a name.

int cuModuleLoadData(void **module, const void *image) {
    *module = dlopen(NULL, RTLD_NOW);
    return image ? 0 : 200;
}
// Kernels are beside this very function.
int cuModuleGetFunction(void **function, void *module, const char *name) {
    Dl_info here;
    (void)module;
    if (!dladdr((void *)cuModuleGetFunction, &here)) return 500;
    void *library = dlopen(here.dli_fname, RTLD_NOW);
    *function = library ? dlsym(library, name) : NULL;
    return *function ? 0 : 500;
}
int cuLaunchKernel(void *f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream,
                   void **parameters, void **extra) {
    if (!x || !y || y > 65535 || z != 1 || bx != THREADS || by != 1 || bz != 1 || shared || extra || REFUSED(!stream)) return 1;
    if (getenv("FAKE_SKIP")) return 0;
    emulate((void (*)(const Args))f, (const Args *)parameters[0], x, y);
    return 0;
}
int cuGetErrorString(int status, const char **text) {
    *text = status == 500 ? "named symbol not found" : "a fake error";
    return 0;
}
int nvrtcVersion(int *major, int *minor) {
    *major = *minor = 0;
    return 0;
}
int nvrtcCreateProgram(void **program, const char *source, const char *name, int headers, const char *const *texts,
                       const char *const *names) {
    (void)name, (void)texts, (void)names;
    *program = (void *)source;
    return headers;
}
int nvrtcCompileProgram(void *program, int n, const char *const *options) {
    return !program || n != 1 || strcmp(options[0], "--gpu-architecture=sm_90");
}
int nvrtcGetProgramLogSize(void *program, size_t *size) {
    *size = program ? 1 : 0;
    return 0;
}
int nvrtcGetProgramLog(void *program, char *log) {
    *log = 0;
    return !program;
}
int nvrtcGetCUBINSize(void *program, size_t *size) {
    *size = program ? 4 : 0;
    return 0;
}
int nvrtcGetCUBIN(void *program, char *image) {
    memcpy(image, "fake", 4);
    return !program;
}
int nvrtcDestroyProgram(void **program) { return !*program; }

// ---- cuDNN: a descriptor is the numbers that it was set with.

typedef struct {
    int v[10];
} Numbers;

typedef struct {
    int algorithm, status;
    float time;
    size_t memory;
    int deterministic, math, reserved[3];
} Performance;

static int make(void **descriptor) {
    *descriptor = calloc(1, sizeof(Numbers));
    return !*descriptor;
}
const char *cudnnGetErrorString(int status) { return status == 3 ? "bad parameter" : "a fake error"; }
int cudnnCreateTensorDescriptor(void **d) { return make(d); }
int cudnnCreateFilterDescriptor(void **d) { return make(d); }
int cudnnCreateConvolutionDescriptor(void **d) { return make(d); }
int cudnnDestroyTensorDescriptor(void *d) { return cudaFree(d); }
int cudnnDestroyFilterDescriptor(void *d) { return cudaFree(d); }
int cudnnDestroyConvolutionDescriptor(void *d) { return cudaFree(d); }
int cudnnSetTensor4dDescriptor(Numbers *d, int format, int type, int n, int c, int h, int w) {
    *d = (Numbers){{n, c, h, w, type}};
    return format || (type && type != 9) ? 3 : 0;
}
int cudnnSetFilter4dDescriptor(Numbers *d, int type, int format, int m, int c, int h, int w) {
    *d = (Numbers){{m, c, h, w, type}};
    return format || (type && type != 9) ? 3 : 0;
}
int cudnnSetConvolution2dDescriptor(Numbers *d, int ph, int pw, int sh, int sw, int dh, int dw, int mode, int type) {
    *d = (Numbers){{ph, pw, sh, sw, dh, dw, 1, 0}};
    return mode != 1 || type ? 3 : 0;
}
int cudnnSetConvolutionGroupCount(Numbers *d, int groups) {
    d->v[6] = groups;
    return 0;
}
int cudnnSetConvolutionMathType(Numbers *d, int math) {
    d->v[7] = math;
    return math != 0 && math != 3 ? 3 : 0;
}
// The shapes must go together; of three algorithms the first is not repeatable and the second not there.
static int found(const Numbers *x, const Numbers *w, const Numbers *c, const Numbers *y, int most, int *n, Performance *out) {
    for (int d = 0; d < 2; d++) {
        int extent = (w->v[2 + d] - 1) * c->v[4 + d] + 1;
        if ((x->v[2 + d] + 2 * c->v[d] - extent) / c->v[2 + d] + 1 != y->v[2 + d]) return 3;
    }
    if (x->v[4] != y->v[4] || x->v[4] != w->v[4]) return 3;
    if (x->v[0] != y->v[0] || y->v[1] != w->v[0] || x->v[1] != w->v[1] * c->v[6] || most < 3) return 3;
    *n = 3;
    out[0] = (Performance){.algorithm = 5, .math = c->v[7]};
    out[1] = (Performance){.algorithm = 6, .status = 9, .deterministic = 1, .math = c->v[7]};
    out[2] = (Performance){.algorithm = 7, .memory = 40, .deterministic = 1, .math = c->v[7]};
    return 0;
}
int cudnnGetConvolutionForwardAlgorithm_v7(void *h, Numbers *x, Numbers *w, Numbers *c, Numbers *y, int most, int *n, Performance *out) {
    return h ? found(x, w, c, y, most, n, out) : 3;
}
int cudnnGetConvolutionBackwardDataAlgorithm_v7(void *h, Numbers *w, Numbers *dy, Numbers *c, Numbers *dx, int most, int *n, Performance *out) {
    return h ? found(dx, w, c, dy, most, n, out) : 3;
}
int cudnnGetConvolutionBackwardFilterAlgorithm_v7(void *h, Numbers *x, Numbers *dy, Numbers *c, Numbers *dw, int most, int *n, Performance *out) {
    return h ? found(x, dw, c, dy, most, n, out) : 3;
}
// Element i of a tensor of f32, or of bf16.
static double element(const void *data, size_t i, int type) {
    Bits b;
    if (!type) return ((const float *)data)[i];
    b.bits = (unsigned)((const unsigned short *)data)[i] << 16;
    return b.number;
}
// Walks over every product of a convolution: pass 0 adds to Y, 1 to X̄, 2 to W̄.
static int convolve(int pass, const Numbers *xd, const Numbers *wd, const Numbers *c, const Numbers *yd, const float *x, const float *w,
                    const float *y, int algorithm, void *space, size_t bytes, float *out) {
    if (algorithm != 7 || !space || bytes != 40) return 3;
    if (getenv("FAKE_SKIP")) return 0;
    const int *xs = xd->v, *ws = wd->v, *ys = yd->v, type = xd->v[4];
    const int *of = pass == 0 ? ys : pass == 1 ? xs : ws;
    size_t size = (size_t)of[0] * of[1] * of[2] * of[3];
    double *sums = calloc(size, sizeof(double));
    for (int n = 0; n < ys[0]; n++)
        for (int m = 0; m < ys[1]; m++)
            for (int i = 0; i < ys[2]; i++)
                for (int j = 0; j < ys[3]; j++)
                    for (int q = 0; q < ws[1]; q++)
                        for (int k = 0; k < ws[2]; k++)
                            for (int l = 0; l < ws[3]; l++) {
                                int r = i * c->v[2] - c->v[0] + k * c->v[4], s = j * c->v[3] - c->v[1] + l * c->v[5];
                                int channel = m / (ys[1] / c->v[6]) * ws[1] + q;
                                if (r < 0 || r >= xs[2] || s < 0 || s >= xs[3]) continue;
                                size_t xi = ((size_t)(n * xs[1] + channel) * xs[2] + r) * xs[3] + s;
                                size_t wi = ((size_t)(m * ws[1] + q) * ws[2] + k) * ws[3] + l;
                                size_t yi = ((size_t)(n * ys[1] + m) * ys[2] + i) * ys[3] + j;
                                if (pass == 0) sums[yi] += element(x, xi, type) * element(w, wi, type);
                                else if (pass == 1) sums[xi] += element(y, yi, type) * element(w, wi, type);
                                else sums[wi] += element(x, xi, type) * element(y, yi, type);
                            }
    for (size_t i = 0; i < size; i++) {
        Bits b = {.number = (float)sums[i]};
        if (type) ((unsigned short *)out)[i] = (unsigned short)((b.bits + 0x7fffu + (b.bits >> 16 & 1u)) >> 16);
        else out[i] = b.number;
    }
    free(sums);
    return 0;
}
int cudnnConvolutionForward(void *h, const float *one, Numbers *xd, const float *x, Numbers *wd, const float *w, Numbers *c, int algorithm,
                            void *space, size_t bytes, const float *zero, Numbers *yd, float *y) {
    if (!h || *one != 1.0f || *zero != 0.0f) return 3;
    return convolve(0, xd, wd, c, yd, x, w, y, algorithm, space, bytes, y);
}
int cudnnConvolutionBackwardData(void *h, const float *one, Numbers *wd, const float *w, Numbers *yd, const float *dy, Numbers *c,
                                 int algorithm, void *space, size_t bytes, const float *zero, Numbers *xd, float *dx) {
    if (!h || *one != 1.0f || *zero != 0.0f) return 3;
    return convolve(1, xd, wd, c, yd, dx, w, dy, algorithm, space, bytes, dx);
}
int cudnnConvolutionBackwardFilter(void *h, const float *one, Numbers *xd, const float *x, Numbers *yd, const float *dy, Numbers *c,
                                   int algorithm, void *space, size_t bytes, const float *zero, Numbers *wd, float *dw) {
    if (!h || *one != 1.0f || *zero != 0.0f) return 3;
    return convolve(2, xd, wd, c, yd, x, dw, dy, algorithm, space, bytes, dw);
}
