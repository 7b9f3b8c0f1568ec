//! The operators of domain `bisam` as ONNX Runtime's CUDA provider sees them.

use super::super::kernels::{Geometry, OPS, Op, Settings, to_ort};
use super::super::ort_error;
use super::super::value::{check, floats};
use super::convolution::Convolution;
use super::device::Device;
use super::elementwise::Elementwise;
use super::functions::Handle;
use super::module::Module;
use super::operators::{self, Args, Call, Launcher, Operand, Pass};
use crate::autodiff::DOMAIN;
use crate::error::Result;
use ort::AsPointer;
use ort::ep::cuda::resource::CuDNNHandle;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::operator::{
    BoxedKernel, ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
    ShapeInferenceContext,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

/// An operator for the CUDA provider.
struct OnDevice {
    op: Op,
    module: Arc<Module>,
    tf32: bool,
}

impl Operator for OnDevice {
    type Kernel<'a> = BoxedKernel<'a>;

    fn name(&self) -> &str {
        self.op.name
    }

    fn execution_provider_type(&self) -> Option<&str> {
        Some("CUDAExecutionProvider")
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        self.op.inputs()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        self.op.outputs()
    }

    fn create_kernel<'a>(&self, node: &KernelContext<'a>) -> ort::Result<BoxedKernel<'a>> {
        Ok(Box::new(Instance {
            op: self.op,
            module: Arc::clone(&self.module),
            tf32: self.tf32,
            settings: self.op.settings(node),
            outputs: node.outputs()?.len(),
            convolution: RefCell::new(None),
        }))
    }

    fn infer_shape(&self, c: &mut ShapeInferenceContext) -> ort::Result<()> {
        self.op.infer_shape(c)
    }
}

/// The kernel of one node.
struct Instance {
    op: Op,
    module: Arc<Module>,
    tf32: bool,
    settings: Settings,
    outputs: usize,
    /// Prepared at the first run.
    convolution: RefCell<Option<Convolution>>,
}

impl Kernel for Instance {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let mut inputs = Vec::with_capacity(context.num_inputs()?);
        for i in 0..context.num_inputs()? {
            if let Some(value) = context.input(i)? {
                let shape = value.shape().iter().map(|d| *d as usize).collect();
                inputs.push(Operand { shape, data: floats(value.ptr().cast_mut()).map_err(to_ort)?.cast_const() });
            }
        }
        let shapes: Vec<Vec<usize>> = inputs.iter().map(|x| x.shape.clone()).collect();
        let shapes = (self.op.shapes)(&self.settings, &shapes).map_err(to_ort)?;
        let mut outputs = Vec::with_capacity(self.outputs);
        for (i, dims) in shapes.iter().enumerate().take(self.outputs) {
            if let Some(value) = context.output(i, dims.iter().map(|d| *d as i64).collect::<Vec<_>>())? {
                outputs.push(floats(value.ptr().cast_mut()).map_err(to_ort)?);
            }
        }
        let number = self.module.number;
        let info = MemoryInfo::new(AllocationDevice::CUDA, number, AllocatorType::Device, MemoryType::Default)?;
        let running = Running {
            instance: self,
            stream: context.stream()?.map_or(ptr::null_mut(), NonNull::as_ptr).cast(),
            cudnn: context.resource(CuDNNHandle)?.cast_mut().cast(),
            allocator: context.allocator(&info)?,
            taken: RefCell::default(),
        };
        let call = Call { settings: &self.settings, inputs: &inputs, shapes: &shapes, outputs: &outputs };
        operators::run(self.op.name, &call, &running).map_err(to_ort)
    }
}

/// A kernel at work.
struct Running<'a> {
    instance: &'a Instance,
    stream: Handle,
    cudnn: Handle,
    allocator: Allocator,
    taken: RefCell<Vec<*mut c_void>>,
}

impl Launcher for Running<'_> {
    fn launch(&self, kernel: &'static str, blocks: [usize; 2], args: &Args) -> Result<()> {
        self.instance.module.launch(kernel, blocks, args, self.stream)
    }

    fn scratch(&self, floats: usize) -> Result<*mut f32> {
        if floats == 0 {
            return Ok(ptr::null_mut());
        }
        let mut block = ptr::null_mut();
        let allocator = self.allocator.ptr().cast_mut();
        // SAFETY: the allocator is the session's own on this device; the block goes back to it below.
        check(unsafe { (ort::api().AllocatorAlloc)(allocator, 4 * floats, &raw mut block) })?;
        self.taken.borrow_mut().push(block);
        Ok(block.cast())
    }

    fn convolve(
        &self,
        pass: Pass,
        geometry: &Geometry,
        half: bool,
        inputs: [*const f32; 2],
        output: *mut f32,
    ) -> Result<()> {
        let mut prepared = self.instance.convolution.borrow_mut();
        let module = &self.instance.module;
        let convolution = match prepared.take().filter(|c| c.is(pass, geometry, half)) {
            Some(convolution) => convolution,
            None => Convolution::new(Arc::clone(&module.cudnn), self.cudnn, pass, geometry, half, self.instance.tf32)?,
        };
        let workspace = self.scratch(convolution.workspace().div_ceil(4))?;
        // SAFETY: shapes were inferred from the tensors', and the workspace has the size that was asked for.
        let result = unsafe { convolution.run(self.cudnn, inputs, workspace, output) };
        *prepared = Some(convolution);
        result
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        for block in self.taken.take() {
            // The arena gives a block out again to what comes later in the same stream only, so what was launched may still use it.
            // SAFETY: from this allocator. A failure to free cannot be acted on here.
            let status = unsafe { (ort::api().AllocatorFree)(self.allocator.ptr().cast_mut(), block) };
            drop(check(status));
        }
    }
}

/// The operators for sessions on a device; the kernels are compiled once for each device.
///
/// # Errors
/// As [`Module::load`], or when ONNX Runtime refuses them.
pub fn domain(device: &Device, tf32: bool) -> Result<OperatorDomain> {
    static MODULES: Mutex<BTreeMap<i32, Arc<Module>>> = Mutex::new(BTreeMap::new());
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    let module = match modules.get(&device.number()) {
        Some(module) => Arc::clone(module),
        None => {
            let module = Arc::new(Module::load(device)?);
            modules.insert(device.number(), Arc::clone(&module));
            module
        }
    };
    let mut domain = OperatorDomain::new(DOMAIN).map_err(ort_error)?;
    for op in OPS {
        domain = domain.add(OnDevice { op, module: Arc::clone(&module), tf32 }).map_err(ort_error)?;
    }
    domain.add(Elementwise(module)).map_err(ort_error)
}
