// What every kernel is given, and how it finds its elements.

#define THREADS 256

typedef struct {
    const float *x[12];
    float *y[8];
    long long n[12];
    float f[4];
} Args;

typedef unsigned int uint;

// The element of this thread among all threads of a launch, and how many there are.
#define FIRST (blockIdx.x * THREADS + threadIdx.x)
#define STRIDE (gridDim.x * THREADS)
// A size.
#define N(i) ((uint)a.n[i])
