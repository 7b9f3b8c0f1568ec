// What kernels.cu needs of a compiler for devices.
#define KERNEL(name) extern "C" __global__ void __launch_bounds__(256) name(const Args a)
#define DEVICE static __device__ __forceinline__
#define SHARED(type, name, count) __shared__ type name[count]
#define INFINITE __int_as_float(0x7f800000)
