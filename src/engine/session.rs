//! Compiled graphs on a device.

use super::binding::RunOptions;
use super::library::{Runtime, take_log};
use super::profile::{self, Destination, NodeTime};
use super::value::{Value, check};
use super::{Binding, cuda, ort_error};
use crate::autodiff::DOMAIN;
use crate::error::{Error, Result, catch_panic};
use crate::ir::{DType, Graph, Tensor, Type, ValueId};
use crate::onnx::{Weights, emit};
use crate::step::placement::for_cuda;
use crate::trace::{Evaluator, encode};
use onnx_protobuf::NodeProto;
use ort::AsPointer;
use ort::ep::{ArbitrarilyConfigurableExecutionProvider, CPU, CUDA};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::{AutoDevicePolicy, GraphOptimizationLevel};
use ort::sys::ONNXTensorElementDataType;
use ort::value::{Outlet, ValueType};
use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::CString;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

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

/// What gets a machine with an NVIDIA GPU an ONNX Runtime that uses it.
const CUDA_HINT: &str = "`pip install \"onnxruntime-gpu[cuda,cudnn]\"` in a Python environment, and name its \
     onnxruntime/capi folder with `--ort PATH`";

/// Compiles graphs for one device.
#[derive(Debug, Clone, Copy)]
pub struct Engine {
    /// The loaded runtime.
    pub runtime: &'static Runtime,
    /// Where training graphs run. Tracing and folding always run on the CPU.
    pub device: Device,
    /// Whether sessions measure their nodes ([`Session::profile`]), which costs some microseconds a node.
    pub profiled: bool,
    /// How graphs run on CUDA.
    pub cuda: CudaOptions,
}

/// How graphs run on CUDA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaOptions {
    /// Factors of convolutions and matrix products may be rounded to TF32 (10 bits instead of 23).
    pub tf32: bool,
    /// A session is captured as a CUDA graph in its first run over a binding and replayed from then on, where all of its nodes are on
    /// the device.
    pub graphs: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self { tf32: false, graphs: true }
    }
}

impl Engine {
    /// Loads ONNX Runtime (see [`load_with`](super::load_with)) for a device.
    ///
    /// # Errors
    /// As [`load_with`](super::load_with); or CUDA where the library has no CUDA provider.
    pub fn new(library: Option<&Path>, threads: Option<usize>, device: Device) -> Result<Self> {
        Self::on(super::load_with(library, threads)?, device)
    }

    /// The loaded runtime for a device.
    ///
    /// # Errors
    /// CUDA where the library has no CUDA provider.
    pub fn on(runtime: &'static Runtime, device: Device) -> Result<Self> {
        if device != Device::Cpu && !runtime.has_cuda() {
            let cause = format!("device {device}: ONNX Runtime {} was built without CUDA", runtime.version);
            return Err(Error::new(cause).hint(CUDA_HINT));
        }
        Ok(Self { runtime, device, profiled: false, cuda: CudaOptions::default() })
    }

    /// Compiles a graph whose parameters and statistics are inputs.
    ///
    /// # Errors
    /// Whatever ONNX Runtime says about the graph or the device.
    pub fn compile(&self, graph: &Graph) -> Result<Session> {
        self.compile_with(graph, Weights::Inputs)
    }

    /// Compiles a graph with the values of its parameters and statistics in it.
    ///
    /// # Errors
    /// As [`Engine::compile`].
    pub fn compile_whole(&self, graph: &Graph) -> Result<Session> {
        self.compile_with(graph, Weights::Initializers)
    }

    fn compile_with(&self, graph: &Graph, weights: Weights) -> Result<Session> {
        let served = (self.device != Device::Cpu).then(|| for_cuda(graph));
        let graph = served.as_ref().unwrap_or(graph);
        let mut model = emit(graph, weights);
        if let Some(proto) = model.graph.as_mut() {
            order_leaves(graph, &mut proto.node);
        }
        self.session(&encode(&model)?, graph.opsets.contains_key(DOMAIN))
    }

    /// Compiles a complete model; on CUDA, of standard operators.
    ///
    /// # Errors
    /// Whatever ONNX Runtime says about the model or the device.
    pub fn compile_model(&self, model: &[u8]) -> Result<Session> {
        self.session(model, false)
    }

    /// Compiles a model; `ours` says whether it has operators of domain `bisam`, which on CUDA need a compiler and cuDNN.
    fn session(&self, model: &[u8], ours: bool) -> Result<Session> {
        let target = match self.device {
            Device::Cpu => Target::Cpu { arena: true },
            Device::Cuda(number) => {
                let device = cuda::Device::get(&self.runtime.path, number)
                    .map_err(|e| Error::new(format!("device {}: {}", self.device, e.cause())).hint(CUDA_HINT))?;
                // A profile is of nodes, which a graph has none of.
                Target::Cuda(device, CudaOptions { graphs: self.cuda.graphs && !self.profiled, ..self.cuda })
            }
        };
        let compile = |target: Target| {
            let profile = self.profiled.then(Destination::new).transpose()?;
            Session::new(self.runtime, model, target, GraphOptimizationLevel::All, ours, profile)
        };
        match target {
            // What has a node that is not for the device cannot be captured, and runs node by node.
            Target::Cuda(device, options) if options.graphs => {
                compile(target).or_else(|_| compile(Target::Cuda(device, CudaOptions { graphs: false, ..options })))
            }
            _ => compile(target),
        }
    }
}

/// Where one session runs.
#[derive(Clone, Copy)]
enum Target {
    /// The CPU. What runs once gives its memory back instead of keeping it in an arena.
    Cpu { arena: bool },
    /// A device.
    Cuda(&'static cuda::Device, CudaOptions),
}

/// Puts nodes that nothing reads behind all others, the first of them last; `nodes` are the graph's.
///
/// ONNX Runtime does not run nodes as they lie in a file. It takes the nodes that nothing reads, from the last to the first, and runs
/// what each needs before it. In the order of the file the gradient of the first layer's weight, made last, would come first, and all
/// other weights' after it, with everything they read kept until then.
fn order_leaves(graph: &Graph, nodes: &mut Vec<NodeProto>) {
    let read: HashSet<ValueId> = graph.nodes.iter().flat_map(|n| n.inputs.iter().flatten()).copied().collect();
    let leaf = |i: usize| !graph.nodes[i].outputs.iter().flatten().any(|v| read.contains(v));
    let (leaves, mut inner): (Vec<_>, Vec<_>) = nodes.drain(..).enumerate().partition(|(i, _)| leaf(*i));
    inner.extend(leaves.into_iter().rev());
    nodes.extend(inner.into_iter().map(|(_, n)| n));
}

impl Evaluator for Engine {
    fn evaluate(&self, model: &[u8], inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>> {
        let target = Target::Cpu { arena: false };
        Session::new(self.runtime, model, target, GraphOptimizationLevel::Disable, true, None)?.run(inputs)
    }

    fn evaluate_each(&self, model: &[u8], inputs: &[&[(&str, &Tensor)]]) -> Result<Vec<Vec<Tensor>>> {
        let target = Target::Cpu { arena: false };
        let mut session = Session::new(self.runtime, model, target, GraphOptimizationLevel::Disable, true, None)?;
        inputs.iter().map(|i| session.run(i)).collect()
    }
}

/// An input or output as a model declares it.
#[derive(Debug, Clone)]
pub(super) struct Port {
    pub name: String,
    dtype: Option<DType>,
    /// Empty when the model says nothing about the shape; `None` for a dimension it leaves open.
    dims: Vec<Option<usize>>,
}

impl Port {
    fn new(outlet: &Outlet) -> Self {
        let (dtype, dims) = match outlet.dtype() {
            ValueType::Tensor { ty, shape, .. } => {
                let dims = shape.iter().map(|d| usize::try_from(*d).ok()).collect();
                (DType::from_onnx(ONNXTensorElementDataType::from(*ty) as i32), dims)
            }
            _ => (None, Vec::new()),
        };
        Self { name: outlet.name().to_owned(), dtype, dims }
    }

    /// Whether a tensor of type `ty` can be given to or taken from this port.
    pub fn accepts(&self, ty: &Type) -> Result<()> {
        let same_rank = self.dims.is_empty() || self.dims.len() == ty.shape.len();
        let same_dims = self.dims.iter().zip(&ty.shape).all(|(want, dim)| want.is_none_or(|want| want == *dim));
        if self.dtype == Some(ty.dtype) && same_rank && same_dims {
            return Ok(());
        }
        let dtype = self.dtype.map_or_else(|| "no tensor".to_owned(), |dtype| dtype.to_string());
        let dims: Vec<String> = self.dims.iter().map(|d| d.map_or("?".to_owned(), |d| d.to_string())).collect();
        Err(Error::new(format!("`{}` is {dtype} [{}], not {} {:?}", self.name, dims.join(", "), ty.dtype, ty.shape)))
    }
}

/// Inputs and outputs of a session, shared with its bindings.
#[derive(Debug)]
pub(super) struct Ports {
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
}

/// A compiled graph.
pub struct Session {
    inner: ort::session::Session,
    ports: Arc<Ports>,
    inputs: Vec<String>,
    outputs: Vec<String>,
    profile: Option<Destination>,
    on_device: bool,
    /// How many were made.
    bindings: Cell<usize>,
}

impl Session {
    fn new(
        runtime: &Runtime,
        model: &[u8],
        target: Target,
        level: GraphOptimizationLevel,
        ours: bool,
        profile: Option<Destination>,
    ) -> Result<Self> {
        take_log();
        // Why CUDA cannot be had, such as a missing library, is only ever logged.
        let explain = |error: Error| match target {
            Target::Cpu { .. } => error,
            Target::Cuda(device, _) => {
                let logged = take_log().pop().map(|line| super::plain(&line).replace('\n', " "));
                let why =
                    logged.filter(|line| line != error.cause()).map_or_else(String::new, |line| format!("; {line}"));
                Error::new(format!("device cuda:{}: {}{why}", device.number(), error.cause())).hint(CUDA_HINT)
            }
        };
        let (provider, operators) = match target {
            Target::Cpu { arena } => {
                let operators = super::kernels::domain()?;
                (CPU::default().with_arena_allocator(arena).build(), Some(operators))
            }
            Target::Cuda(device, options) => {
                let provider = CUDA::default()
                    .with_device_id(device.number())
                    .with_tf32(options.tf32)
                    .with_cuda_graph(options.graphs)
                    // Every session's work goes into one stream, so that it follows in order without anybody waiting.
                    .with_arbitrary_config("has_user_compute_stream", 1)
                    .with_arbitrary_config("user_compute_stream", device.stream() as usize);
                let operators = ours.then(|| cuda::domain(device, options.tf32)).transpose()?;
                (provider.build().error_on_failure(), operators)
            }
        };
        let once = matches!(target, Target::Cpu { arena: false });
        let builder = ort::session::Session::builder(runtime.environment()).map_err(ort_error)?;
        // `ort` asks for the most efficient device by default, which need not be the CPU.
        let builder = builder.with_auto_device(AutoDevicePolicy::PreferCPU).map_err(ort_error)?;
        let builder = builder.with_optimization_level(level).map_err(ort_error)?;
        // A memory pattern holds one block for all activations of the second run beside the arena of the first: it nearly
        // doubles the peak (ResNet-56, batch 128: 761 MB with, 431 without) and saves no time.
        let builder = builder.with_memory_pattern(false).map_err(ort_error)?;
        let builder = if once { builder } else { builder.with_env_allocators().map_err(ort_error)? };
        let operates = operators.is_some();
        let builder = match operators {
            Some(operators) => builder.with_operators(operators).map_err(ort_error)?,
            None => builder,
        };
        let builder = match &profile {
            Some(profile) => builder.with_profiling(profile.prefix()).map_err(ort_error)?,
            None => builder,
        };
        // ONNX Runtime keeps the domains it has seen without a lock: the first session that brings ours must be alone.
        static FIRST: Mutex<bool> = Mutex::new(false);
        let mut seen = FIRST.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let alone = (operates && !*seen).then(|| {
            *seen = true;
            seen
        });
        let mut builder = builder.with_execution_providers([provider]).map_err(ort_error).map_err(explain)?;
        let inner = commit(&mut builder, model).map_err(explain)?;
        drop(alone);
        let ports = |outlets: &[Outlet]| outlets.iter().map(Port::new).collect::<Vec<_>>();
        let ports = Ports { inputs: ports(inner.inputs()), outputs: ports(inner.outputs()) };
        let names = |ports: &[Port]| ports.iter().map(|port| port.name.clone()).collect();
        let (inputs, outputs) = (names(&ports.inputs), names(&ports.outputs));
        let on_device = matches!(target, Target::Cuda(..));
        Ok(Self { inner, ports: Arc::new(ports), inputs, outputs, profile, on_device, bindings: Cell::new(0) })
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
        if let Some((name, _)) = inputs.iter().find(|(name, _)| !self.inputs.iter().any(|input| input == name)) {
            return Err(Error::new(format!("there is no input `{name}`")).hint(self.inputs_hint()));
        }
        let host = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default);
        let host = host.map_err(ort_error)?;
        let mut names = Vec::with_capacity(self.inputs.len());
        let mut values = Vec::with_capacity(self.inputs.len());
        // Copies of tensors whose bytes are not aligned for their type; they live until the run is over.
        let mut aligned: Vec<Vec<u64>> = Vec::new();
        for port in &self.ports.inputs {
            let name = &port.name;
            let given = inputs.iter().find(|(n, _)| n == name).map(|(_, t)| *t);
            let tensor = given.ok_or_else(|| Error::new(format!("input `{name}` is not given")))?;
            port.accepts(&tensor.ty())?;
            let mut data = tensor.bytes().as_ptr();
            if !(data as usize).is_multiple_of(tensor.dtype().width().max(1)) {
                let mut copy = vec![0u64; tensor.bytes().len().div_ceil(8)];
                bytemuck::cast_slice_mut::<u64, u8>(&mut copy)[..tensor.bytes().len()].copy_from_slice(tensor.bytes());
                data = copy.as_ptr().cast();
                aligned.push(copy);
            }
            // SAFETY: the bytes fill the tensor's type, are only read, and outlive the run below.
            values.push(unsafe { Value::over(&host, data.cast_mut(), &tensor.ty())? });
            names.push(c_name(name)?);
        }
        let outputs = self.outputs.iter().map(|n| c_name(n)).collect::<Result<Vec<_>>>()?;
        let name_ptrs: Vec<_> = names.iter().map(|n| n.as_ptr()).collect();
        let value_ptrs: Vec<_> = values.iter().map(|v| v.ptr().cast_const()).collect();
        let output_ptrs: Vec<_> = outputs.iter().map(|n| n.as_ptr()).collect();
        let mut results = vec![std::ptr::null_mut(); outputs.len()];
        let options = self.on_device.then(RunOptions::unbound).transpose()?;
        // SAFETY: every array has the length that is passed, and every pointer in it is valid through the call.
        check(unsafe {
            (ort::api().Run)(
                self.inner.ptr_mut(),
                options.as_ref().map_or(std::ptr::null(), RunOptions::ptr),
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
        results.into_iter().map(|v| v.to_tensor()).collect()
    }

    /// A binding of this session.
    ///
    /// # Errors
    /// When ONNX Runtime cannot make one.
    pub fn binding(&self) -> Result<Binding> {
        let inner = self.inner.create_binding().map_err(ort_error)?;
        // Every binding has addresses of its own, and so a graph of its own.
        self.bindings.set(self.bindings.get() + 1);
        let options = self.on_device.then(|| RunOptions::bound(self.bindings.get())).transpose()?;
        Ok(Binding::new(inner, self.inner.ptr(), Arc::clone(&self.ports), options))
    }

    /// Runs over bound memory; nothing is allocated or copied on this side. A run on a device is only started.
    ///
    /// # Errors
    /// An input that is not bound, a binding of another session, or a node that fails.
    pub fn run_bound(&mut self, binding: &Binding) -> Result<()> {
        binding.ready(self.inner.ptr())?;
        // SAFETY: the binding was made by this session's `binding`, all inputs are bound, and it keeps its memory alive;
        // nothing else uses the memory while the call lasts, because buffers are neither `Send` nor `Sync`.
        check(unsafe { (ort::api().RunWithBinding)(self.inner.ptr_mut(), binding.options(), binding.ptr()) })
    }

    /// What every node took in the runs so far; measures no more. Empty unless the engine is profiled, and a second time.
    ///
    /// # Errors
    /// A profile that cannot be read.
    pub fn profile(&mut self) -> Result<Vec<NodeTime>> {
        let Some(_folder) = self.profile.take() else { return Ok(Vec::new()) };
        profile::read(Path::new(&self.inner.end_profiling().map_err(ort_error)?))
    }

    fn inputs_hint(&self) -> String {
        format!("the inputs are {}", self.inputs.join(", "))
    }
}

/// `ort` panics on a type with a dimension below −1, which ONNX Runtime infers for a window larger than its input.
fn commit(builder: &mut ort::session::builder::SessionBuilder, model: &[u8]) -> Result<ort::session::Session> {
    match catch_panic(|| builder.commit_from_memory(model)) {
        Some(session) => session.map_err(ort_error),
        None => Err(Error::new("ONNX Runtime infers an impossible shape for an output").hint(
            "a window larger than its padded input is the usual reason; compare the input's size with the model's",
        )),
    }
}

pub(super) fn c_name(name: &str) -> Result<CString> {
    CString::new(name).map_err(|_| Error::new(format!("name {name:?} contains a zero byte")))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{engine, sum_model};
    use super::*;
    use crate::builder::Builder;
    use crate::ir::{Declared, Source};

    #[test]
    fn devices_are_read_as_written() -> Result<()> {
        for (text, device) in [("cpu", Device::Cpu), ("cuda:0", Device::Cuda(0)), ("cuda:3", Device::Cuda(3))] {
            assert_eq!(text.parse::<Device>()?, device);
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse::<Device>()?, Device::Cuda(0));
        assert!(["", "gpu", "cuda:-1", "cuda:x", "cpu:1"].iter().all(|text| text.parse::<Device>().is_err()));
        Ok(())
    }

    /// Every element type goes in and comes out bit for bit.
    #[test]
    fn tensors_of_every_type_pass_through() -> Result<()> {
        use DType::*;
        for dtype in [F32, F64, F16, BF16, I8, I16, I32, I64, U8, U16, U32, U64, Bool] {
            for shape in [&[2, 3][..], &[], &[0, 4]] {
                let n = shape.iter().product::<usize>();
                let tensor = Tensor::from_f64(dtype, shape, &(0..n).map(|i| i as f64).collect::<Vec<_>>());
                let model = super::super::tests::identity_model(dtype, shape)?;
                let mut session = engine().compile_model(&model)?;
                assert_eq!(session.run(&[("x", &tensor)])?, [tensor], "{dtype} {shape:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn wrong_inputs_are_named() -> Result<()> {
        let mut session = engine().compile_model(&sum_model(&[2, 2])?)?;
        let (good, flat) = (Tensor::full(DType::F32, &[2, 2], 1.0), Tensor::full(DType::F32, &[4], 1.0));
        let whole = Tensor::full(DType::I64, &[2, 2], 1.0);
        let mut fails = |inputs: &[(&str, &Tensor)]| session.run(inputs).expect_err("wrong input").to_string();
        assert_eq!(fails(&[("a", &good)]), "input `b` is not given");
        assert_eq!(fails(&[("a", &good), ("b", &good), ("c", &good)]), "there is no input `c`");
        assert_eq!(fails(&[("a", &good), ("b", &flat)]), "`b` is f32 [2, 2], not f32 [4]");
        assert_eq!(fails(&[("a", &whole), ("b", &good)]), "`a` is f32 [2, 2], not i64 [2, 2]");
        assert_eq!(session.run(&[("a", &good), ("b", &good)])?, [Tensor::full(DType::F32, &[2, 2], 2.0)]);
        Ok(())
    }

    #[test]
    fn cuda_that_cannot_be_had_is_an_error_with_a_reason() {
        if engine().runtime.has_cuda() {
            return;
        }
        let error = Engine::new(None, None, Device::Cuda(0)).expect_err("a library without CUDA");
        assert!(error.to_string().contains("built without CUDA"), "{error}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("onnxruntime-gpu")));
    }

    /// What a node leaves for a leaf is not kept longer than the leaf needs it.
    #[test]
    fn nodes_run_in_the_order_of_the_graph() -> Result<()> {
        let mut graph = Graph::default();
        graph.name.push_str("chain");
        graph.opsets.insert(String::new(), 18);
        let ty = Type::new(DType::F32, &[4]);
        let declared = Declared { dtype: DType::F32, dims: None };
        let mut x = graph.add_value("x", Some(ty.clone()), Source::Input(declared));
        graph.inputs.push(x);
        for i in 0..4 {
            let mut b = Builder::new(&mut graph, &format!("step{i}"));
            let leaf = b.unary("Sin", x);
            x = b.unary("Tanh", x);
            graph.outputs.push(leaf);
        }
        graph.outputs.push(x);
        let mut session = Engine { profiled: true, ..engine() }.compile(&graph)?;
        session.run(&[("x", &Tensor::full(DType::F32, &[4], 0.5))])?;
        let ran: Vec<String> = session.profile()?.into_iter().map(|n| n.name).collect();
        // The last Tanh is a leaf, too.
        let nodes: Vec<&str> = graph.nodes.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(ran, nodes);
        assert!(session.profile()?.is_empty());
        Ok(())
    }

    #[test]
    fn a_model_that_is_none_is_an_error() {
        assert!(engine().compile_model(b"not a model").is_err());
        assert!(engine().compile_model(&[]).is_err());
    }
}
