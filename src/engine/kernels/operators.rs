//! The operators as data, and as ONNX Runtime sees them.

use super::super::ort_error;
use super::Pool;
use super::conv::{self, Geometry};
use super::elementwise::Elementwise;
use super::norm::{self, After, Known, Planes};
use super::pointwise::{self, Activation};
use super::pool::{self, Windows};
use super::random;
use super::rows::{self, Rows, Scale};
use super::simd::Level;
use crate::autodiff::DOMAIN;
use crate::error::{Error, Result};
use ort::operator::{
    BoxedKernel, ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
    ShapeInferenceContext,
};
use ort::value::{Shape, SymbolicDimensions, TensorElementType::Float32, ValueType};
use std::sync::OnceLock;

/// Attributes that are one integer; the others are lists, and ONNX Runtime does not tell when asked for the wrong one.
const SCALARS: &[&str] = &["group", "relu", "centred", "axis", "bf16", "id"];

/// Attributes of a node.
pub struct Settings {
    /// Integers and lists of them, by name.
    pub ints: Vec<(&'static str, Vec<i64>)>,
    /// Of a normalization.
    pub epsilon: f32,
    /// The greatest output behind a Relu.
    pub ceiling: f32,
}

impl Settings {
    /// Whether a Relu follows.
    pub fn relu(&self) -> bool {
        self.list("relu") == [1]
    }

    /// Whether a device rounds factors to bf16.
    pub fn bf16(&self) -> bool {
        self.list("bf16") == [1]
    }

    /// Whether a normalization takes the mean off.
    pub fn centred(&self) -> bool {
        self.list("centred") == [1]
    }

    /// The first axis that is normalized over.
    pub fn axis(&self) -> usize {
        self.list("axis").first().map_or(0, |a| (*a).max(0) as usize)
    }

    fn list(&self, name: &str) -> &[i64] {
        self.ints.iter().find(|(n, _)| *n == name).map_or(&[], |(_, v)| v)
    }

    fn pair(&self, name: &str) -> Result<[usize; 2]> {
        let list = self.list(name);
        let pair = |list: &[i64]| Some([usize::try_from(*list.first()?).ok()?, usize::try_from(*list.get(1)?).ok()?]);
        pair(list).ok_or_else(|| Error::new(format!("attribute `{name}` is {list:?}")))
    }
}

/// From attributes and shapes of the inputs to those of the outputs.
pub type Shapes = fn(&Settings, &[Vec<usize>]) -> Result<Vec<Vec<usize>>>;
/// From attributes, inputs and the outputs' shapes to the outputs.
pub type Compute = fn(&Settings, &[Input<'_>], &[Vec<usize>], &mut [&mut [f32]], &dyn Pool) -> Result<()>;

/// An operator as data.
#[derive(Clone, Copy)]
pub struct Op {
    /// Its type.
    pub name: &'static str,
    /// Inputs and outputs, and how many of the last may be left out.
    inputs: (usize, usize),
    outputs: (usize, usize),
    ints: &'static [&'static str],
    /// From the inputs' shapes to the outputs'.
    pub shapes: Shapes,
    /// From the inputs and the outputs' shapes to the outputs.
    pub compute: Compute,
}

/// Random numbers; a device has no kernel of it, and runs the plain operators.
pub const UNIFORM: Op = Op {
    name: "Uniform",
    inputs: (1, 0),
    outputs: (1, 0),
    ints: &["id", "output_shape"],
    shapes: |s, _| Ok(vec![s.list("output_shape").iter().map(|d| (*d).max(0) as usize).collect()]),
    compute: |s, x, _, y, pool| random::uniform(s.list("id").first().copied().unwrap_or(0), x[0].data, y[0], pool),
};

/// A tensor that is read.
pub struct Input<'a> {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements.
    pub data: &'a [f32],
}

/// Every operator.
pub const OPS: [Op; 19] = [
    Op {
        name: "Conv",
        inputs: (3, 1),
        outputs: (1, 0),
        ints: &["strides", "dilations", "pads", "group", "bf16"],
        shapes: |s, x| Ok(vec![output_shape(s, of(x, 0)?, of(x, 1)?)?]),
        compute: |s, x, shapes, y, pool| {
            let g = geometry(s, &x[0].shape, &x[1].shape, &shapes[0])?;
            conv::forward(&g, x[0].data, x[1].data, x.get(2).map(|b| b.data), y[0], level(), pool)
        },
    },
    Op {
        name: "ConvInputGrad",
        inputs: (2, 0),
        outputs: (1, 0),
        ints: &["strides", "dilations", "pads", "group", "bf16", "input_shape"],
        shapes: |s, x| Ok(vec![input_shape(s, of(x, 0)?, of(x, 1)?)?]),
        compute: |s, x, shapes, y, pool| {
            let g = geometry(s, &shapes[0], &x[1].shape, &x[0].shape)?;
            conv::input_gradient(&g, x[0].data, x[1].data, y[0], false, level(), pool)
        },
    },
    Op {
        name: "ConvWeightGrad",
        inputs: (2, 0),
        outputs: (1, 0),
        ints: &["strides", "dilations", "pads", "group", "bf16", "kernel_shape"],
        shapes: |s, x| Ok(vec![weight_shape(s, of(x, 0)?, of(x, 1)?)?]),
        compute: |s, x, shapes, y, pool| {
            let g = geometry(s, &x[0].shape, &shapes[0], &x[1].shape)?;
            conv::weight_gradient(&g, x[0].data, x[1].data, y[0], level(), pool)
        },
    },
    Op {
        name: "BatchNorm",
        inputs: (4, 1),
        outputs: (3, 0),
        ints: &["relu"],
        shapes: |_, x| Ok(vec![of(x, 0)?.to_vec(), of(x, 1)?.to_vec(), of(x, 1)?.to_vec()]),
        compute: |s, x, _, y, pool| {
            let [y, mean, variance] = y else { return Err(Error::new("an output is missing")) };
            let (gains, residual) = ([x[1].data, x[2].data], x.get(3).map(|r| r.data));
            let planes = planes(&x[0].shape)?;
            norm::forward(planes, x[0].data, gains, residual, s.epsilon, after(s), y, [mean, variance], level(), pool)
        },
    },
    Op {
        name: "BatchNormGrad",
        inputs: (7, 1),
        outputs: (4, 1),
        ints: &["relu"],
        shapes: |_, x| {
            let (x, c) = (of(x, 0)?, of(x, 2)?);
            Ok([x, c, c, x].map(<[usize]>::to_vec).to_vec())
        },
        compute: |s, x, _, y, pool| {
            let [dx, dgain, dbias, rest @ ..] = y else { return Err(Error::new("an output is missing")) };
            let known = Known {
                x: x[0].data,
                dy: x[1].data,
                gain: x[2].data,
                bias: x[3].data,
                mean: x[4].data,
                variance: x[5].data,
                y: x.get(6).map(|y| y.data),
                epsilon: s.epsilon,
                after: after(s),
            };
            let residual = rest.first_mut().map(|r| &mut **r);
            norm::gradient(planes(&x[0].shape)?, &known, dx, [dgain, dbias], residual, level(), pool)
        },
    },
    Op {
        name: "BatchNormAgain",
        inputs: (6, 0),
        outputs: (1, 0),
        ints: &["relu"],
        shapes: |_, x| same(x, 1),
        compute: |s, x, _, y, pool| {
            let (gains, moments) = ([x[2].data, x[3].data], [x[4].data, x[5].data]);
            let planes = planes(&x[1].shape)?;
            norm::apply(planes, x[1].data, gains, moments, None, s.epsilon, after(s), y[0], level(), pool)
        },
    },
    Op {
        name: "LayerNorm",
        inputs: (3, 2),
        outputs: (1, 0),
        ints: &["centred", "axis"],
        shapes: |_, x| same(x, 0),
        compute: |s, x, _, y, pool| layer_norm(s, x, y[0], pool),
    },
    Op {
        name: "LayerNormAgain",
        inputs: (4, 2),
        outputs: (1, 0),
        ints: &["centred", "axis"],
        shapes: |_, x| same(x, 1),
        compute: |s, x, _, y, pool| layer_norm(s, &x[1..], y[0], pool),
    },
    Op {
        name: "LayerNormGrad",
        inputs: (3, 1),
        outputs: (3, 2),
        ints: &["centred", "axis"],
        shapes: |_, x| {
            let gain = x.get(2).map(|gain| [gain.clone(), gain.clone()]);
            Ok([of(x, 0)?.to_vec()].into_iter().chain(gain.into_iter().flatten()).collect())
        },
        compute: |s, x, _, y, pool| {
            let [dx, sums @ ..] = y else { return Err(Error::new("an output is missing")) };
            let gain = match (x.get(2), sums) {
                (Some(gain), [dgain, dbias]) => Some((gain.data, [&mut **dgain, &mut **dbias])),
                _ => None,
            };
            rows::normalize_gradient(rows(&x[0], s.axis()), [x[0].data, x[1].data], gain, scale(s), dx, level(), pool)
        },
    },
    Op {
        name: "MaxPool",
        inputs: (1, 0),
        outputs: (1, 0),
        ints: WINDOWS,
        shapes: |s, x| Ok(vec![pooled_shape(s, of(x, 0)?)?]),
        compute: |s, x, shapes, y, pool| {
            pool::forward(&windows(s, &x[0].shape, &shapes[0])?, x[0].data, y[0], level(), pool)
        },
    },
    Op {
        name: "MaxPoolGrad",
        inputs: (2, 0),
        outputs: (1, 0),
        ints: WINDOWS,
        shapes: |_, x| same(x, 0),
        compute: |s, x, _, y, pool| {
            pool::gradient(&windows(s, &x[0].shape, &x[1].shape)?, x[0].data, x[1].data, y[0], level(), pool)
        },
    },
    shaped("Softmax", 1, |_, x, _, y, pool| rows::softmax(last(&x[0]), x[0].data, y[0], level(), pool)),
    shaped("SoftmaxGrad", 2, |_, x, _, y, pool| {
        rows::softmax_gradient(last(&x[0]), x[0].data, x[1].data, y[0], level(), pool)
    }),
    shaped("Silu", 1, |_, x, _, y, pool| pointwise::forward(Activation::Silu, x[0].data, y[0], level(), pool)),
    again("SiluAgain", |_, x, _, y, pool| pointwise::forward(Activation::Silu, x[1].data, y[0], level(), pool)),
    shaped("SiluGrad", 2, |_, x, _, y, pool| {
        pointwise::gradient(Activation::Silu, x[0].data, x[1].data, y[0], level(), pool)
    }),
    shaped("Gelu", 1, |_, x, _, y, pool| pointwise::forward(Activation::Gelu, x[0].data, y[0], level(), pool)),
    again("GeluAgain", |_, x, _, y, pool| pointwise::forward(Activation::Gelu, x[1].data, y[0], level(), pool)),
    shaped("GeluGrad", 2, |_, x, _, y, pool| {
        pointwise::gradient(Activation::Gelu, x[0].data, x[1].data, y[0], level(), pool)
    }),
];

/// Attributes of a pooling; without an output's shape, `ceil_mode` would have to be told.
const WINDOWS: &[&str] = &["strides", "dilations", "pads", "kernel_shape", "output_shape"];

/// An operator without attributes whose inputs and one output have one shape.
const fn shaped(name: &'static str, inputs: usize, compute: Compute) -> Op {
    Op { name, inputs: (inputs, 0), outputs: (1, 0), ints: &[], shapes: |_, x| same(x, 0), compute }
}

/// An operator without attributes that computes an output of the second input's shape again.
const fn again(name: &'static str, compute: Compute) -> Op {
    Op { name, inputs: (2, 0), outputs: (1, 0), ints: &[], shapes: |_, x| same(x, 1), compute }
}

/// One output of the shape of input `i`.
fn same(x: &[Vec<usize>], i: usize) -> Result<Vec<Vec<usize>>> {
    Ok(vec![of(x, i)?.to_vec()])
}

fn layer_norm(s: &Settings, x: &[Input<'_>], y: &mut [f32], pool: &dyn Pool) -> Result<()> {
    let vectors = [x.get(1), x.get(2)].map(|v| v.map(|v| v.data));
    rows::normalize(rows(&x[0], s.axis()), x[0].data, vectors, scale(s), y, level(), pool)
}

/// Rows over the axes from `axis` on.
fn rows(x: &Input<'_>, axis: usize) -> Rows {
    let width: usize = x.shape.iter().skip(axis).product();
    Rows { rows: x.data.len() / width.max(1), width }
}

/// Rows along the last axis.
fn last(x: &Input<'_>) -> Rows {
    rows(x, x.shape.len().saturating_sub(1))
}

fn scale(s: &Settings) -> Scale {
    Scale { centred: s.centred(), epsilon: s.epsilon }
}

fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(Level::best)
}

fn of(shapes: &[Vec<usize>], i: usize) -> Result<&[usize]> {
    shapes.get(i).map(Vec::as_slice).ok_or_else(|| Error::new(format!("the shape of input {i} is not known")))
}

fn after(s: &Settings) -> After {
    if s.relu() { After::Relu { ceiling: s.ceiling } } else { After::Nothing }
}

/// X [N,C,…] as planes.
///
/// # Errors
/// Less than two dimensions.
pub fn planes(x: &[usize]) -> Result<Planes> {
    let [n, c, rest @ ..] = x else { return Err(Error::new(format!("an input of shape {x:?}"))) };
    Ok(Planes { n: *n, c: *c, plane: rest.iter().product() })
}

fn four(shape: &[usize]) -> Result<[usize; 4]> {
    shape.try_into().map_err(|_| Error::new(format!("a tensor of shape {shape:?} instead of four dimensions")))
}

fn output_shape(s: &Settings, x: &[usize], weight: &[usize]) -> Result<Vec<usize>> {
    let (x, w) = (four(x)?, four(weight)?);
    let (strides, dilations) = (s.pair("strides")?, s.pair("dilations")?);
    let pads = s.list("pads");
    let mut y = vec![x[0], w[0]];
    for i in 0..2 {
        let padded = x[2 + i] as i64 + pads.iter().skip(i).step_by(2).sum::<i64>();
        let extent = (dilations[i] * (w[2 + i] - 1) + 1) as i64;
        if padded < extent || strides[i] == 0 {
            return Err(Error::new(format!("a window of {w:?} does not fit an input of {x:?} with pads {pads:?}")));
        }
        y.push((padded - extent) as usize / strides[i] + 1);
    }
    Ok(y)
}

fn input_shape(s: &Settings, dy: &[usize], weight: &[usize]) -> Result<Vec<usize>> {
    let (dy, w, [h, width]) = (four(dy)?, four(weight)?, s.pair("input_shape")?);
    Ok(vec![dy[0], w[1] * groups(s), h, width])
}

fn weight_shape(s: &Settings, x: &[usize], dy: &[usize]) -> Result<Vec<usize>> {
    let (x, dy, [h, width]) = (four(x)?, four(dy)?, s.pair("kernel_shape")?);
    Ok(vec![dy[1], x[1] / groups(s), h, width])
}

fn groups(s: &Settings) -> usize {
    s.list("group").first().map_or(1, |g| (*g).max(1) as usize)
}

/// The convolution of X [N,C,H,W] with W [M,C/g,K₁,K₂] to Y.
///
/// # Errors
/// Other than four dimensions, or attributes that are missing.
pub fn geometry(s: &Settings, x: &[usize], weight: &[usize], y: &[usize]) -> Result<Geometry> {
    let ([n, c, ix, jx], [m, _, kernel, wide], [_, _, iy, jy]) = (four(x)?, four(weight)?, four(y)?);
    Ok(Geometry {
        n,
        c,
        m,
        groups: groups(s),
        input: [ix, jx],
        output: [iy, jy],
        kernel: [kernel, wide],
        strides: s.pair("strides")?,
        dilations: s.pair("dilations")?,
        begin: s.pair("pads")?,
    })
}

fn pooled_shape(s: &Settings, x: &[usize]) -> Result<Vec<usize>> {
    let [n, c, ..] = four(x)?;
    let [h, w] = s.pair("output_shape")?;
    Ok(vec![n, c, h, w])
}

/// The windows of a pooling from X [N,C,H,W] to Y.
///
/// # Errors
/// As [`geometry`].
pub fn windows(s: &Settings, x: &[usize], y: &[usize]) -> Result<Windows> {
    let ([_, _, ix, jx], [_, _, iy, jy]) = (four(x)?, four(y)?);
    Ok(Windows {
        input: [ix, jx],
        output: [iy, jy],
        kernel: s.pair("kernel_shape")?,
        strides: s.pair("strides")?,
        dilations: s.pair("dilations")?,
        begin: s.pair("pads")?,
    })
}

/// An error as ONNX Runtime takes it from a kernel.
pub fn to_ort(e: Error) -> ort::Error {
    ort::Error::new(e.cause().to_owned())
}

impl Op {
    /// The attributes of a node.
    pub fn settings(&self, node: &KernelContext<'_>) -> Settings {
        let read = |name: &&'static str| {
            let one = || node.get::<i64>(name).map(|v| vec![v]);
            (*name, if SCALARS.contains(name) { one() } else { node.get(name) }.unwrap_or_default())
        };
        let float = |name: &str, otherwise: f32| node.get(name).unwrap_or(otherwise);
        Settings {
            ints: self.ints.iter().map(read).collect(),
            epsilon: float("epsilon", 1e-5),
            ceiling: float("ceiling", f32::INFINITY),
        }
    }
}

impl Operator for Op {
    type Kernel<'a> = BoxedKernel<'a>;

    fn name(&self) -> &str {
        self.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let (all, optional) = self.inputs;
        let input = move |i| match i + optional < all {
            true => OperatorInput::required(Float32),
            false => OperatorInput::optional(Float32),
        };
        (0..all).map(input)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        let (all, optional) = self.outputs;
        let output = move |i| match i + optional < all {
            true => OperatorOutput::required(Float32),
            false => OperatorOutput::optional(Float32),
        };
        (0..all).map(output)
    }

    fn create_kernel<'a>(&self, node: &KernelContext<'a>) -> ort::Result<BoxedKernel<'a>> {
        Ok(Box::new(Instance { op: *self, settings: self.settings(node), outputs: node.outputs()?.len() }))
    }

    fn infer_shape(&self, c: &mut ShapeInferenceContext) -> ort::Result<()> {
        let read = |name: &&'static str| {
            let one = || c.attr::<i64>(name).map(|v| vec![v]);
            (*name, if SCALARS.contains(name) { one() } else { c.attr(name) }.unwrap_or_default())
        };
        let settings = Settings { ints: self.ints.iter().map(read).collect(), epsilon: 0.0, ceiling: 0.0 };
        let known = |ty: &ValueType| match ty {
            ValueType::Tensor { shape, .. } => shape.iter().map(|d| usize::try_from(*d).ok()).collect(),
            _ => None,
        };
        let inputs: Option<Vec<Vec<usize>>> = c.inputs().iter().map(known).collect();
        let Some(inputs) = inputs else { return Ok(()) };
        let shapes = (self.shapes)(&settings, &inputs).map_err(to_ort)?;
        for (i, dims) in shapes.into_iter().enumerate() {
            let shape = Shape::new(dims.iter().map(|d| *d as i64));
            let ty = ValueType::Tensor { ty: Float32, shape, dimension_symbols: SymbolicDimensions::empty(dims.len()) };
            // An optional output that the node leaves out has no place for a shape.
            if c.set_output(i, &ty).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// The kernel of one node.
struct Instance {
    op: Op,
    settings: Settings,
    outputs: usize,
}

impl Kernel for Instance {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let mut values = Vec::with_capacity(self.op.inputs.0);
        for i in 0..context.num_inputs()? {
            values.extend(context.input(i)?);
        }
        let mut inputs = Vec::with_capacity(values.len());
        for value in &values {
            let (shape, data) = value.try_extract_tensor::<f32>()?;
            inputs.push(Input { shape: shape.iter().map(|d| *d as usize).collect(), data });
        }
        let shapes: Vec<Vec<usize>> = inputs.iter().map(|x| x.shape.clone()).collect();
        let shapes = (self.op.shapes)(&self.settings, &shapes).map_err(to_ort)?;
        let mut values = Vec::with_capacity(self.outputs);
        for (i, dims) in shapes.iter().enumerate().take(self.outputs) {
            values.extend(context.output(i, dims.iter().map(|d| *d as i64).collect::<Vec<_>>())?);
        }
        let mut outputs = Vec::with_capacity(values.len());
        for value in &mut values {
            outputs.push(value.try_extract_tensor_mut::<f32>()?.1);
        }
        (self.op.compute)(&self.settings, &inputs, &shapes, &mut outputs, context).map_err(to_ort)
    }
}

/// The operators, for sessions to know.
///
/// # Errors
/// When ONNX Runtime refuses them.
pub fn domain() -> Result<OperatorDomain> {
    let mut domain = OperatorDomain::new(DOMAIN).map_err(ort_error)?;
    for op in OPS {
        domain = domain.add(op).map_err(ort_error)?;
    }
    domain.add(UNIFORM).and_then(|d| d.add(Elementwise)).map_err(ort_error)
}
