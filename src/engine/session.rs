//! Compiled graphs on a device.

use super::library::{Runtime, take_log};
use super::value::{Value, check};
use super::{Binding, ort_error};
use crate::error::{Error, Result};
use crate::ir::{Graph, Tensor};
use crate::onnx::{Weights, emit};
use crate::trace::{Evaluator, encode};
use ort::AsPointer;
use ort::ep::{CPU, CUDA};
use ort::memory::MemoryInfo;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use std::ffi::CString;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// Where graphs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The CPU execution provider.
    #[default]
    Cpu,
    /// The CUDA execution provider on this device; what cannot be had is an error, never a silent CPU run.
    Cuda(i32),
}

impl FromStr for Device {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':').map_or((text, "0"), |(d, n)| (d, n)) {
            ("cpu", "0") => Ok(Self::Cpu),
            ("cuda", n) if n.parse::<i32>().is_ok_and(|n| n >= 0) => Ok(Self::Cuda(n.parse().unwrap_or(0))),
            _ => Err(Error::new(format!("unknown device `{text}`")).hint("devices are cpu, cuda and cuda:N")),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// Compiles graphs for one device.
#[derive(Debug, Clone, Copy)]
pub struct Engine {
    /// The loaded runtime.
    pub runtime: &'static Runtime,
    /// Where training graphs run. Tracing and folding always run on the CPU.
    pub device: Device,
}

impl Engine {
    /// Loads ONNX Runtime (see [`load_with`](super::load_with)) for a device.
    ///
    /// # Errors
    /// As [`load_with`](super::load_with); or CUDA where the library has no CUDA provider.
    pub fn new(library: Option<&Path>, threads: Option<usize>, device: Device) -> Result<Self> {
        let runtime = super::load_with(library, threads)?;
        if device != Device::Cpu && !runtime.providers.iter().any(|p| p == "CUDAExecutionProvider") {
            let cause = format!("ONNX Runtime {} was built without CUDA", runtime.version);
            return Err(Error::new(cause)
                .in_file(&runtime.path)
                .hint("`pip install onnxruntime-gpu` and name its library with --ort PATH"));
        }
        Ok(Self { runtime, device })
    }

    /// Compiles a graph whose parameters and statistics are inputs.
    ///
    /// # Errors
    /// Whatever ONNX Runtime says about the graph or the device.
    pub fn compile(&self, graph: &Graph) -> Result<Session> {
        let model = encode(&emit(graph, Weights::Inputs))?;
        Session::new(self.runtime, &model, self.device, GraphOptimizationLevel::All)
    }

    /// Compiles a complete model.
    ///
    /// # Errors
    /// Whatever ONNX Runtime says about the model or the device.
    pub fn compile_model(&self, model: &[u8]) -> Result<Session> {
        Session::new(self.runtime, model, self.device, GraphOptimizationLevel::All)
    }
}

impl Evaluator for Engine {
    fn evaluate(&self, model: &[u8], inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>> {
        Session::new(self.runtime, model, Device::Cpu, GraphOptimizationLevel::Disable)?.run(inputs)
    }
}

/// A compiled graph.
pub struct Session {
    inner: ort::session::Session,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl Session {
    fn new(runtime: &Runtime, model: &[u8], device: Device, level: GraphOptimizationLevel) -> Result<Self> {
        #[allow(clippy::result_large_err, reason = "the builder's own error type")]
        let builder = |builder: SessionBuilder| {
            let provider = match device {
                Device::Cpu => CPU::default().with_arena_allocator(true).build(),
                Device::Cuda(n) => CUDA::default().with_device_id(n).with_tf32(false).build().error_on_failure(),
            };
            let builder = builder.with_optimization_level(level)?.with_execution_providers([provider])?;
            builder.with_intra_threads(runtime.threads)
        };
        take_log();
        let logged = |e: Error| match take_log().into_iter().find(|_| device != Device::Cpu) {
            Some(why) => e.hint(why),
            None => e,
        };
        let session = ort::session::Session::builder(runtime.environment()).map_err(ort_error)?;
        let mut session = builder(session).map_err(ort_error).map_err(logged)?;
        let inner = session.commit_from_memory(model).map_err(ort_error).map_err(logged)?;
        let inputs = inner.inputs().iter().map(|i| i.name().to_owned()).collect();
        let outputs = inner.outputs().iter().map(|o| o.name().to_owned()).collect();
        Ok(Self { inner, inputs, outputs })
    }

    /// Names of the inputs, in order.
    pub fn inputs(&self) -> &[String] {
        &self.inputs
    }

    /// Names of the outputs, in order.
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// Runs once on tensors in host memory; the outputs in order.
    ///
    /// # Errors
    /// A missing, unknown or misshapen input, or a node that fails.
    pub fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>> {
        let mut names = Vec::with_capacity(self.inputs.len());
        let mut values = Vec::with_capacity(self.inputs.len());
        // Copies of tensors whose bytes are not aligned for their type; they live until the run is over.
        let mut aligned: Vec<Vec<u64>> = Vec::new();
        for name in &self.inputs {
            let given = inputs.iter().find(|(n, _)| n == name).map(|(_, t)| *t);
            let tensor = given.ok_or_else(|| Error::new(format!("input `{name}` is not given")))?;
            let mut data = tensor.bytes().as_ptr();
            if !(data as usize).is_multiple_of(tensor.dtype().width().max(1)) {
                let mut copy = vec![0u64; tensor.bytes().len().div_ceil(8)];
                bytemuck::cast_slice_mut::<u64, u8>(&mut copy)[..tensor.bytes().len()].copy_from_slice(tensor.bytes());
                data = copy.as_ptr().cast();
                aligned.push(copy);
            }
            // SAFETY: the bytes fill the tensor's type, are only read, and outlive the run below.
            values.push(unsafe { Value::over(&MemoryInfo::default(), data.cast_mut(), &tensor.ty())? });
            names.push(c_name(name)?);
        }
        let outputs = self.outputs.iter().map(|n| c_name(n)).collect::<Result<Vec<_>>>()?;
        let name_ptrs: Vec<_> = names.iter().map(|n| n.as_ptr()).collect();
        let value_ptrs: Vec<_> = values.iter().map(|v| v.ptr().cast_const()).collect();
        let output_ptrs: Vec<_> = outputs.iter().map(|n| n.as_ptr()).collect();
        let mut results = vec![std::ptr::null_mut(); outputs.len()];
        // SAFETY: every array has the length that is passed, and every pointer in it is valid through the call.
        check(unsafe {
            (ort::api().Run)(
                self.inner.ptr_mut(),
                std::ptr::null(),
                name_ptrs.as_ptr(),
                value_ptrs.as_ptr(),
                value_ptrs.len(),
                output_ptrs.as_ptr(),
                output_ptrs.len(),
                results.as_mut_ptr(),
            )
        })?;
        // SAFETY: the run made these values for this caller.
        let results: Vec<Value> = results.into_iter().map(|v| unsafe { Value::from_raw(v) }).collect::<Result<_>>()?;
        results.iter().map(Value::to_tensor).collect()
    }

    /// A binding of this session.
    ///
    /// # Errors
    /// When ONNX Runtime cannot make one.
    pub fn binding(&self) -> Result<Binding> {
        Ok(Binding::new(self.inner.create_binding().map_err(ort_error)?))
    }

    /// Runs over bound memory; nothing is allocated or copied on this side.
    ///
    /// # Errors
    /// A node that fails, or an input that is not bound.
    pub fn run_bound(&mut self, binding: &Binding) -> Result<()> {
        // SAFETY: the binding was made by this session's `binding` and keeps its memory alive; nothing else uses the memory
        // while the call lasts, because buffers are neither `Send` nor `Sync`.
        check(unsafe { (ort::api().RunWithBinding)(self.inner.ptr_mut(), std::ptr::null(), binding.ptr()) })?;
        binding.synchronize()
    }

    pub(super) fn allocator(&self, info: MemoryInfo<'_>) -> Result<ort::memory::Allocator> {
        ort::memory::Allocator::new(&self.inner, info).map_err(ort_error)
    }
}

fn c_name(name: &str) -> Result<CString> {
    CString::new(name).map_err(|_| Error::new(format!("name {name:?} contains a zero byte")))
}
