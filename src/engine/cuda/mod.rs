//! CUDA: a device with its memory and its one stream, and the kernels of domain `bisam` on it.
//!
//! [`functions`] looks CUDA's libraries up at run time, so nothing of CUDA is needed to build; [`device`] is the device itself,
//! [`upload`] brings batches to it beside the computation. [`operators`] says what each operator launches: kernels of `kernels.cu`,
//! which [`compiler`] has NVRTC compile into a [`module`], and cuDNN's [`convolution`]s; [`kernel`] is what ONNX Runtime sees of that, and
//! [`elementwise`] an operator whose kernel is written by the graph.
//!
//! `fake.c` stands for all of CUDA where there is no device: memory of the host, and kernels compiled for the CPU. Tests run over it.

mod compiler;
mod convolution;
mod device;
mod elementwise;
mod functions;
mod kernel;
mod module;
mod operators;
mod packages;
mod upload;

pub use device::Device;
pub use kernel::domain;
use packages::preload;
pub use upload::Uploads;

/// What gets a machine what is missing.
const HINT: &str = "`pip install \"onnxruntime-gpu[cuda,cudnn]\"` in a Python environment has all of CUDA's libraries but the driver, \
     which the system must have; name its onnxruntime/capi folder with `--ort PATH`; `--kernels plain` does without NVRTC";

#[cfg(all(test, target_os = "linux"))]
mod tests;

/// The fake device, on the system that it is written for.
#[cfg(all(test, target_os = "linux"))]
pub fn fake_devices() -> Vec<&'static Device> {
    vec![tests::fake_device()]
}

/// There is none here.
#[cfg(all(test, not(target_os = "linux")))]
pub fn fake_devices() -> Vec<&'static Device> {
    Vec::new()
}
