//! The functions of CUDA's libraries that are used here, looked up when they are first needed: nothing of CUDA is needed to build.
//!
//! Signatures are those of CUDA 12 and 13 (`cuda_runtime_api.h`, `cuda.h`, `nvrtc.h`) and cuDNN 9 (`cudnn_*_v9.h`).

use crate::error::{Error, Result};
use libloading::Library;
use std::ffi::{c_char, c_int, c_uint, c_void};

/// What all of these functions return: 0, or the number of an error.
pub type Status = c_int;
/// A pointer whose target belongs to the library.
pub type Handle = *mut c_void;

macro_rules! library {
    ($(#[$doc:meta])* $name:ident, $title:literal, $files:expr, { $(fn $f:ident($($t:ty),*) -> $r:ty;)* }) => {
        $(#[$doc])*
        #[allow(non_snake_case, reason = "the library's own names")]
        pub struct $name {
            $(pub $f: unsafe extern "C" fn($($t),*) -> $r,)*
            _library: Library,
        }

        impl $name {
            /// The library, as the dynamic loader finds it; what the packages beside ONNX Runtime have is loaded already.
            ///
            /// # Errors
            /// When there is none, or it lacks a function.
            pub fn load() -> Result<Self> {
                Self::open(open($title, $files)?)
            }

            /// The functions of an open library.
            ///
            /// # Errors
            /// When it lacks one, by name.
            pub fn open(library: Library) -> Result<Self> {
                Ok(Self {
                    // SAFETY: the signatures are those of the library's headers, which keep them within a major version.
                    $($f: *unsafe { library.get(concat!(stringify!($f), "\0").as_bytes()) }
                        .map_err(|_| Error::new(format!("{} lacks the function `{}`", $title, stringify!($f))))?,)*
                    _library: library,
                })
            }
        }
    };
}

fn open(title: &str, files: &[&str]) -> Result<Library> {
    let mut why = String::new();
    for file in files {
        // SAFETY: NVIDIA's libraries are made to be loaded.
        match unsafe { Library::new(*file) } {
            Ok(library) => return Ok(library),
            Err(e) => why = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string),
        }
    }
    Err(Error::new(format!("{title} cannot be loaded: {why}")).hint(super::HINT))
}

library!(
    /// Memory, streams and events.
    Runtime, "CUDA's runtime", &["libcudart.so.13", "libcudart.so.12", "libcudart.so"], {
        fn cudaSetDevice(c_int) -> Status;
        fn cudaDeviceGetAttribute(*mut c_int, c_int, c_int) -> Status;
        fn cudaGetErrorString(Status) -> *const c_char;
        fn cudaMalloc(*mut Handle, usize) -> Status;
        fn cudaFree(Handle) -> Status;
        fn cudaHostAlloc(*mut Handle, usize, c_uint) -> Status;
        fn cudaFreeHost(Handle) -> Status;
        fn cudaMemsetAsync(Handle, c_int, usize, Handle) -> Status;
        fn cudaMemcpyAsync(Handle, *const c_void, usize, c_int, Handle) -> Status;
        fn cudaStreamCreateWithFlags(*mut Handle, c_uint) -> Status;
        fn cudaStreamSynchronize(Handle) -> Status;
        fn cudaStreamWaitEvent(Handle, Handle, c_uint) -> Status;
        fn cudaEventCreateWithFlags(*mut Handle, c_uint) -> Status;
        fn cudaEventRecord(Handle, Handle) -> Status;
        fn cudaEventSynchronize(Handle) -> Status;
        fn cudaEventDestroy(Handle) -> Status;
        fn cudaMemGetInfo(*mut usize, *mut usize) -> Status;
    }
);

library!(
    /// Modules of compiled kernels.
    Driver, "CUDA's driver", &["libcuda.so.1"], {
        fn cuModuleLoadData(*mut Handle, *const c_void) -> Status;
        fn cuModuleGetFunction(*mut Handle, Handle, *const c_char) -> Status;
        fn cuLaunchKernel(Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void) -> Status;
        fn cuGetErrorString(Status, *mut *const c_char) -> Status;
    }
);

library!(
    /// The compiler.
    Nvrtc, "NVRTC", &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"], {
        fn nvrtcVersion(*mut c_int, *mut c_int) -> Status;
        fn nvrtcCreateProgram(*mut Handle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> Status;
        fn nvrtcCompileProgram(Handle, c_int, *const *const c_char) -> Status;
        fn nvrtcGetProgramLogSize(Handle, *mut usize) -> Status;
        fn nvrtcGetProgramLog(Handle, *mut c_char) -> Status;
        fn nvrtcGetCUBINSize(Handle, *mut usize) -> Status;
        fn nvrtcGetCUBIN(Handle, *mut c_char) -> Status;
        fn nvrtcDestroyProgram(*mut Handle) -> Status;
    }
);

library!(
    /// Convolutions.
    Cudnn, "cuDNN", &["libcudnn.so.9"], {
        fn cudnnGetErrorString(Status) -> *const c_char;
        fn cudnnCreateTensorDescriptor(*mut Handle) -> Status;
        fn cudnnSetTensor4dDescriptor(Handle, c_int, c_int, c_int, c_int, c_int, c_int) -> Status;
        fn cudnnDestroyTensorDescriptor(Handle) -> Status;
        fn cudnnCreateFilterDescriptor(*mut Handle) -> Status;
        fn cudnnSetFilter4dDescriptor(Handle, c_int, c_int, c_int, c_int, c_int, c_int) -> Status;
        fn cudnnDestroyFilterDescriptor(Handle) -> Status;
        fn cudnnCreateConvolutionDescriptor(*mut Handle) -> Status;
        fn cudnnSetConvolution2dDescriptor(Handle, c_int, c_int, c_int, c_int, c_int, c_int, c_int, c_int) -> Status;
        fn cudnnSetConvolutionGroupCount(Handle, c_int) -> Status;
        fn cudnnSetConvolutionMathType(Handle, c_int) -> Status;
        fn cudnnDestroyConvolutionDescriptor(Handle) -> Status;
        fn cudnnGetConvolutionForwardAlgorithm_v7(Handle, Handle, Handle, Handle, Handle, c_int, *mut c_int, *mut Algorithm) -> Status;
        fn cudnnGetConvolutionBackwardDataAlgorithm_v7(Handle, Handle, Handle, Handle, Handle, c_int, *mut c_int, *mut Algorithm) -> Status;
        fn cudnnGetConvolutionBackwardFilterAlgorithm_v7(Handle, Handle, Handle, Handle, Handle, c_int, *mut c_int, *mut Algorithm) -> Status;
        fn cudnnConvolutionForward(Handle, *const f32, Handle, *const f32, Handle, *const f32, Handle, c_int, Handle, usize, *const f32, Handle, *mut f32) -> Status;
        fn cudnnConvolutionBackwardData(Handle, *const f32, Handle, *const f32, Handle, *const f32, Handle, c_int, Handle, usize, *const f32, Handle, *mut f32) -> Status;
        fn cudnnConvolutionBackwardFilter(Handle, *const f32, Handle, *const f32, Handle, *const f32, Handle, c_int, Handle, usize, *const f32, Handle, *mut f32) -> Status;
    }
);

/// `cudnnConvolutionFwdAlgoPerf_t` and its like, which have the same fields.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Algorithm {
    pub algorithm: c_int,
    pub status: Status,
    pub milliseconds: f32,
    pub workspace: usize,
    pub deterministic: c_int,
    pub math: c_int,
    _reserved: [c_int; 3],
}
