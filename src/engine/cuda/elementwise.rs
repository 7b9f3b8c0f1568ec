//! `bisam.Elementwise`: a loop over elements whose body is an attribute, written in CUDA C and compiled when the node is.

use super::super::kernels::{elementwise, to_ort};
use super::super::value::floats;
use super::module::Module;
use super::operators::{Args, elements, fits};
use crate::step::elementwise::{Body, Function, MOST, Operand};
use ort::AsPointer;
use ort::operator::{BoxedKernel, ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// The operator.
pub struct Elementwise(pub Arc<Module>);

/// The source of a kernel with this body.
pub fn source(body: &Body) -> String {
    let read = |o: &Operand| match o {
        Operand::Element(k) => format!("a.x[{k}][i]"),
        Operand::Scalar(k) => format!("a.x[{k}][0]"),
        // Nine digits tell every float from its neighbours.
        Operand::Number(n) => format!("{n:.9e}f"),
        Operand::Step(k) => format!("v{k}"),
    };
    let steps = body.steps.iter().enumerate().map(|(k, (function, operands))| {
        let operands: Vec<String> = operands.iter().map(read).collect();
        let (a, b) = (&operands[0], operands.get(1).map_or("", String::as_str));
        let value = match function {
            Function::Add => format!("{a} + {b}"),
            Function::Sub => format!("{a} - {b}"),
            Function::Mul => format!("{a} * {b}"),
            Function::Div => format!("{a} / {b}"),
            Function::Min => format!("{a} >= {b} ? {b} : {a}"),
            Function::Neg => format!("-({a})"),
            Function::Abs => format!("fabsf({a})"),
            Function::Sqrt => format!("sqrtf({a})"),
        };
        format!("        float v{k} = {value};\n")
    });
    let outputs = body.outputs.iter().enumerate().map(|(k, o)| format!("        a.y[{k}][i] = {};\n", read(o)));
    let code: String = steps.chain(outputs).collect();
    format!("KERNEL(elementwise) {{\n    for (uint i = FIRST; i < N(0); i += STRIDE) {{\n{code}    }}\n}}\n")
}

impl Operator for Elementwise {
    type Kernel<'a> = BoxedKernel<'a>;

    fn name(&self) -> &str {
        "Elementwise"
    }

    fn execution_provider_type(&self) -> Option<&str> {
        Some("CUDAExecutionProvider")
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        elementwise::inputs()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        elementwise::outputs()
    }

    fn create_kernel<'a>(&self, node: &KernelContext<'a>) -> ort::Result<BoxedKernel<'a>> {
        let function = self.0.compile(&source(&elementwise::body(node)?), "elementwise").map_err(to_ort)? as usize;
        Ok(Box::new(Instance { module: Arc::clone(&self.0), function, outputs: node.outputs()?.len() }))
    }
}

struct Instance {
    module: Arc<Module>,
    /// Address of the compiled kernel.
    function: usize,
    outputs: usize,
}

impl Kernel for Instance {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let mut args = Args::default();
        let mut shape: Vec<i64> = Vec::new();
        let len = |s: &[i64]| s.iter().product::<i64>();
        for i in 0..context.num_inputs()?.min(MOST.0) {
            let Some(value) = context.input(i)? else { continue };
            args.x[i] = floats(value.ptr().cast_mut()).map_err(to_ort)?.cast_const();
            let dims: Vec<i64> = value.shape().iter().copied().collect();
            if i == 0 || len(&dims) > len(&shape) {
                shape = dims;
            }
        }
        for i in 0..self.outputs.min(MOST.1) {
            if let Some(value) = context.output(i, shape.clone())? {
                args.y[i] = floats(value.ptr().cast_mut()).map_err(to_ort)?;
            }
        }
        let n = usize::try_from(len(&shape)).unwrap_or(usize::MAX);
        fits(n).map_err(to_ort)?;
        args.n[0] = n as i64;
        let stream = context.stream()?.map_or(ptr::null_mut(), NonNull::as_ptr).cast();
        self.module
            .start(self.function as super::functions::Handle, "elementwise", elements(n), &args, stream)
            .map_err(to_ort)
    }
}
