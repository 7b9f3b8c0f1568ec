//! What the operators of domain `bisam` launch on a device: kernels of `kernels.cu`, and cuDNN's convolutions.

use super::super::kernels::{Geometry, Settings, geometry, planes, windows};
use crate::error::{Error, Result};
use std::ptr;

/// The arguments of every kernel; as `Args` in `kernels.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Args {
    pub x: [*const f32; 12],
    pub y: [*mut f32; 8],
    pub n: [i64; 12],
    pub f: [f32; 4],
}

impl Default for Args {
    fn default() -> Self {
        Self { x: [ptr::null(); 12], y: [ptr::null_mut(); 8], n: [0; 12], f: [0.0; 4] }
    }
}

/// Threads of a block, as in `kernels.cu`.
pub const THREADS: usize = 256;
/// Blocks of a launch whose threads take several elements each.
const BLOCKS: usize = 4096;
/// Elements of a channel that one block of BatchNormalization sums up.
const SLICE: usize = 8192;
/// Rows that one thread of LayerNormalization sums up.
const ROWS: usize = 64;

/// One of a convolution's three passes: what it reads, and what it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// X, W → Y.
    Forward,
    /// W, Ȳ → X̄.
    Input,
    /// X, Ȳ → W̄.
    Weight,
}

/// What runs kernels one after the other.
pub trait Launcher {
    /// Starts a kernel on a grid of blocks.
    fn launch(&self, kernel: &'static str, blocks: [usize; 2], args: &Args) -> Result<()>;
    /// Memory of the device until the operator is done.
    fn scratch(&self, floats: usize) -> Result<*mut f32>;
    /// A pass of a convolution padded alike on opposite sides, of f32 or, if `half`, bf16.
    fn convolve(
        &self,
        pass: Pass,
        geometry: &Geometry,
        half: bool,
        inputs: [*const f32; 2],
        output: *mut f32,
    ) -> Result<()>;
}

/// A tensor on the device.
#[derive(Debug, Clone)]
pub struct Operand {
    pub shape: Vec<usize>,
    pub data: *const f32,
}

/// One call of an operator.
pub struct Call<'a> {
    pub settings: &'a Settings,
    pub inputs: &'a [Operand],
    /// Shapes of the outputs.
    pub shapes: &'a [Vec<usize>],
    pub outputs: &'a [*mut f32],
}

impl Call<'_> {
    fn x(&self, i: usize) -> Result<*const f32> {
        self.inputs.get(i).map(|x| x.data).ok_or_else(|| Error::new(format!("input {i} is missing")))
    }

    /// An input that may be left out, or null.
    fn opt(&self, i: usize) -> *const f32 {
        self.inputs.get(i).map_or(ptr::null(), |x| x.data)
    }

    fn shape(&self, i: usize) -> Result<&[usize]> {
        self.inputs.get(i).map(|x| x.shape.as_slice()).ok_or_else(|| Error::new(format!("input {i} is missing")))
    }

    fn y(&self, i: usize) -> Result<*mut f32> {
        self.outputs.get(i).copied().ok_or_else(|| Error::new(format!("output {i} is missing")))
    }
}

fn len(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Blocks for a thread per element, or several elements per thread.
pub fn elements(n: usize) -> [usize; 2] {
    [n.div_ceil(THREADS).clamp(1, BLOCKS), 1]
}

/// Whether kernels, whose places have 32 bits, can take a tensor of `n` elements.
///
/// # Errors
/// When they cannot.
pub fn fits(n: usize) -> Result<()> {
    if n <= i32::MAX as usize {
        return Ok(());
    }
    Err(Error::new(format!("a tensor of {n} elements is too large for kernels with 32-bit places"))
        .hint("take a smaller batch, or --kernels plain"))
}

fn int(n: usize) -> i64 {
    n as i64
}

/// Launches what `op` computes.
///
/// # Errors
/// Shapes that do not fit, tensors of 2^31 elements and more, or a launch that fails.
pub fn run(op: &str, call: &Call<'_>, gpu: &dyn Launcher) -> Result<()> {
    let shapes = call.inputs.iter().map(|x| &x.shape).chain(call.shapes);
    shapes.into_iter().try_for_each(|s| fits(len(s)))?;
    if call.shapes.first().is_some_and(|s| len(s) == 0) {
        return Ok(());
    }
    match op {
        "Conv" => conv(call, gpu),
        "ConvInputGrad" => conv_input_grad(call, gpu),
        "ConvWeightGrad" => conv_weight_grad(call, gpu),
        "BatchNorm" => batch_norm(call, gpu),
        "BatchNormAgain" => batch_norm_again(call, gpu),
        "BatchNormGrad" => batch_norm_grad(call, gpu),
        "LayerNorm" => layer_norm(call, 0, gpu),
        "LayerNormAgain" => layer_norm(call, 1, gpu),
        "LayerNormGrad" => layer_norm_grad(call, gpu),
        "MaxPool" => pool(call, "max_pool", &call.shapes[0], gpu),
        "MaxPoolGrad" => pool(call, "max_pool_grad", call.shape(1)?, gpu),
        "Softmax" => rows(call, "softmax", gpu),
        "SoftmaxGrad" => rows(call, "softmax_grad", gpu),
        "Silu" => pointwise(call, "silu", 0, gpu),
        "SiluAgain" => pointwise(call, "silu", 1, gpu),
        "SiluGrad" => pointwise(call, "silu_grad", 0, gpu),
        "Gelu" => pointwise(call, "gelu", 0, gpu),
        "GeluAgain" => pointwise(call, "gelu", 1, gpu),
        "GeluGrad" => pointwise(call, "gelu_grad", 0, gpu),
        _ => Err(Error::new(format!("there is no kernel of {op} for CUDA"))),
    }
}

/// A kernel over elements whose inputs are the operator's from `first` on.
fn pointwise(call: &Call<'_>, kernel: &'static str, first: usize, gpu: &dyn Launcher) -> Result<()> {
    let n = len(&call.shapes[0]);
    let mut args = Args::default();
    args.n[0] = int(n);
    (args.x[0], args.x[1], args.y[0]) = (call.x(first)?, call.opt(first + 1), call.y(0)?);
    gpu.launch(kernel, elements(n), &args)
}

/// Blocks for a block per row, or several rows per block.
fn by_row(rows: usize) -> [usize; 2] {
    [rows.clamp(1, BLOCKS), 1]
}

/// A kernel over the rows along the last axis.
fn rows(call: &Call<'_>, kernel: &'static str, gpu: &dyn Launcher) -> Result<()> {
    let shape = &call.shapes[0];
    let width = shape.last().copied().unwrap_or(1);
    let rows = len(shape) / width;
    let mut args = Args::default();
    [args.n[0], args.n[1]] = [int(rows), int(width)];
    (args.x[0], args.x[1], args.y[0]) = (call.x(0)?, call.opt(1), call.y(0)?);
    gpu.launch(kernel, by_row(rows), &args)
}

/// Rows over the axes from the attribute `axis` on.
fn row_args(call: &Call<'_>, shape: &[usize]) -> (usize, usize, Args) {
    let width: usize = shape.iter().skip(call.settings.axis()).product();
    let rows = len(shape) / width.max(1);
    let mut args = Args::default();
    (args.n[0], args.n[1], args.n[2]) = (int(rows), int(width), i64::from(call.settings.centred()));
    args.f[0] = call.settings.epsilon;
    (rows, width, args)
}

fn layer_norm(call: &Call<'_>, first: usize, gpu: &dyn Launcher) -> Result<()> {
    let (rows, _, mut args) = row_args(call, &call.shapes[0]);
    (args.x[0], args.x[1], args.x[2]) = (call.x(first)?, call.opt(first + 1), call.opt(first + 2));
    args.y[0] = call.y(0)?;
    gpu.launch("layer_norm", by_row(rows), &args)
}

fn layer_norm_grad(call: &Call<'_>, gpu: &dyn Launcher) -> Result<()> {
    let (rows, width, mut args) = row_args(call, &call.shapes[0]);
    (args.x[0], args.x[1], args.x[2], args.y[0]) = (call.x(0)?, call.x(1)?, call.opt(2), call.y(0)?);
    if call.inputs.len() < 3 {
        return gpu.launch("layer_norm_grad", by_row(rows), &args);
    }
    let (moments, parts) = (gpu.scratch(2 * rows)?, rows.div_ceil(ROWS));
    args.y[1] = moments;
    gpu.launch("layer_norm_grad", by_row(rows), &args)?;
    let sums = gpu.scratch(2 * parts * width)?;
    (args.x[2], args.y[0], args.n[2]) = (moments, sums, int(parts));
    gpu.launch("layer_norm_sums", [width.div_ceil(THREADS), parts], &args)?;
    (args.x[0], args.y[0], args.y[1]) = (sums, call.y(1)?, call.y(2)?);
    gpu.launch("layer_norm_totals", [width.div_ceil(THREADS), 1], &args)
}

/// Arguments of BatchNormalization on X of this shape, and C, and slices.
fn batch_args(call: &Call<'_>, shape: &[usize]) -> Result<(Args, usize, usize)> {
    let p = planes(shape)?;
    let slices = (p.n * p.plane).div_ceil(SLICE);
    let mut args = Args::default();
    let relu = call.settings.relu();
    for (n, size) in args.n.iter_mut().zip([p.n, p.c, p.plane, slices, usize::from(relu)]) {
        *n = int(size);
    }
    (args.f[0], args.f[1]) = (call.settings.epsilon, call.settings.ceiling);
    Ok((args, p.c, slices))
}

/// γ/√(v + ε) of every channel.
fn slopes(base: &Args, gain: *const f32, variance: *const f32, c: usize, gpu: &dyn Launcher) -> Result<*mut f32> {
    let slopes = gpu.scratch(c)?;
    let mut args = *base;
    (args.x[0], args.x[1], args.y[0]) = (gain, variance, slopes);
    gpu.launch("batch_slopes", [c.div_ceil(THREADS), 1], &args)?;
    Ok(slopes)
}

fn batch_norm(call: &Call<'_>, gpu: &dyn Launcher) -> Result<()> {
    let (base, c, slices) = batch_args(call, &call.shapes[0])?;
    let (mean, variance) = (call.y(1)?, call.y(2)?);
    // Pairs of doubles.
    let moments = gpu.scratch(4 * c * slices)?;
    let mut args = base;
    (args.x[0], args.y[0]) = (call.x(0)?, moments);
    gpu.launch("batch_moments", [c, slices], &args)?;
    (args.x[0], args.y[0], args.y[1]) = (moments, mean, variance);
    gpu.launch("batch_statistics", [c, 1], &args)?;
    batch_apply(&base, [call.x(0)?, call.x(1)?, call.x(2)?, mean, variance, call.opt(3)], call, c, gpu)
}

fn batch_norm_again(call: &Call<'_>, gpu: &dyn Launcher) -> Result<()> {
    let (base, c, _) = batch_args(call, &call.shapes[0])?;
    let known = [call.x(1)?, call.x(2)?, call.x(3)?, call.x(4)?, call.x(5)?, ptr::null()];
    batch_apply(&base, known, call, c, gpu)
}

/// Y from X, γ, β, μ, v and the residual.
fn batch_apply(base: &Args, known: [*const f32; 6], call: &Call<'_>, c: usize, gpu: &dyn Launcher) -> Result<()> {
    let [x, gain, bias, mean, variance, residual] = known;
    let slopes = slopes(base, gain, variance, c, gpu)?;
    let mut args = *base;
    args.x[..5].copy_from_slice(&[x, slopes, bias, mean, residual]);
    args.y[0] = call.y(0)?;
    gpu.launch("batch_apply", elements(len(&call.shapes[0])), &args)
}

fn batch_norm_grad(call: &Call<'_>, gpu: &dyn Launcher) -> Result<()> {
    let (base, c, slices) = batch_args(call, &call.shapes[0])?;
    let [x, dy, gain, bias, mean, variance] = [0, 1, 2, 3, 4, 5].map(|i| call.opt(i));
    call.x(5)?;
    let slopes = slopes(&base, gain, variance, c, gpu)?;
    let (sums, lines) = (gpu.scratch(4 * c * slices)?, gpu.scratch(2 * c)?);
    let mut args = base;
    args.x[..6].copy_from_slice(&[x, dy, slopes, bias, mean, call.opt(6)]);
    args.y[0] = sums;
    gpu.launch("batch_sums", [c, slices], &args)?;
    let mut totals = base;
    totals.x[..3].copy_from_slice(&[sums.cast_const(), gain, variance]);
    totals.y[..3].copy_from_slice(&[call.y(1)?, call.y(2)?, lines]);
    gpu.launch("batch_totals", [c, 1], &totals)?;
    args.x[6] = lines;
    (args.y[0], args.y[1]) = (call.y(0)?, call.outputs.get(3).copied().unwrap_or(ptr::null_mut()));
    gpu.launch("batch_spread", elements(len(&call.shapes[0])), &args)
}

fn pool(call: &Call<'_>, kernel: &'static str, y: &[usize], gpu: &dyn Launcher) -> Result<()> {
    let x = call.shape(0)?;
    let w = windows(call.settings, x, y)?;
    if w.dilations.iter().any(|d| *d >= 1 << 16) {
        return Err(Error::new(format!("dilations of {:?}", w.dilations)));
    }
    let [planes, dilations] = [x[0] * x[1], w.dilations[0] + (w.dilations[1] << 16)];
    let sizes = [w.input, w.output, w.kernel, w.strides].concat();
    let mut args = Args::default();
    for (n, size) in args.n.iter_mut().zip([vec![planes], sizes, vec![dilations], w.begin.to_vec()].concat()) {
        *n = int(size);
    }
    (args.x[0], args.x[1], args.y[0]) = (call.x(0)?, call.opt(1), call.y(0)?);
    gpu.launch(kernel, elements(len(&call.shapes[0])), &args)
}

fn conv(call: &Call<'_>, gpu: &dyn Launcher) -> Result<()> {
    let g = geometry(call.settings, call.shape(0)?, call.shape(1)?, &call.shapes[0])?;
    let (framed, x) = framed(&g, call.x(0)?, gpu)?;
    convolve(call, Pass::Forward, &framed, [x, call.x(1)?], call.y(0)?, gpu)?;
    let bias = call.opt(2);
    if bias.is_null() {
        return Ok(());
    }
    let mut args = Args::default();
    [args.n[0], args.n[1], args.n[2]] = [g.n, g.m, g.output[0] * g.output[1]].map(int);
    (args.x[0], args.y[0]) = (bias, call.y(0)?);
    gpu.launch("add_bias", elements(len(&call.shapes[0])), &args)
}

fn conv_input_grad(call: &Call<'_>, gpu: &dyn Launcher) -> Result<()> {
    let g = geometry(call.settings, &call.shapes[0], call.shape(1)?, call.shape(0)?)?;
    let inputs = [call.x(1)?, call.x(0)?];
    match frame(&g) {
        None => convolve(call, Pass::Input, &g, inputs, call.y(0)?, gpu),
        Some(framed) => {
            let dx = gpu.scratch(g.n * g.c * framed.input[0] * framed.input[1])?;
            convolve(call, Pass::Input, &framed, inputs, dx, gpu)?;
            let back = g.begin.map(|b| -int(b));
            move_planes(g.n * g.c, framed.input, g.input, back, dx, call.y(0)?, gpu)
        }
    }
}

fn conv_weight_grad(call: &Call<'_>, gpu: &dyn Launcher) -> Result<()> {
    let g = geometry(call.settings, call.shape(0)?, &call.shapes[0], call.shape(1)?)?;
    let (framed, x) = framed(&g, call.x(0)?, gpu)?;
    convolve(call, Pass::Weight, &framed, [x, call.x(1)?], call.y(0)?, gpu)
}

/// A pass of a convolution; with the attribute `bf16`, of rounded factors, its result rounded once.
fn convolve(
    call: &Call<'_>,
    pass: Pass,
    g: &Geometry,
    inputs: [*const f32; 2],
    output: *mut f32,
    gpu: &dyn Launcher,
) -> Result<()> {
    if !call.settings.bf16() {
        return gpu.convolve(pass, g, false, inputs, output);
    }
    let plane = |p: [usize; 2]| p[0] * p[1];
    let x = g.n * g.c * plane(g.input);
    let weight = g.m * (g.c / g.groups.max(1)) * plane(g.kernel);
    let y = g.n * g.m * plane(g.output);
    let [first, second, made] = match pass {
        Pass::Forward => [x, weight, y],
        Pass::Input => [weight, y, x],
        Pass::Weight => [x, y, weight],
    };
    let cast = |kernel, from: *const f32, to: *mut f32, n: usize| {
        let mut args = Args::default();
        args.n[0] = int(n);
        (args.x[0], args.y[0]) = (from, to);
        gpu.launch(kernel, elements(n), &args)
    };
    // Two of them in the place of a float.
    let half = |n: usize| gpu.scratch(n.div_ceil(2));
    let (a, b, out) = (half(first)?, half(second)?, half(made)?);
    cast("to_bf16", inputs[0], a, first)?;
    cast("to_bf16", inputs[1], b, second)?;
    gpu.convolve(pass, g, true, [a, b], out)?;
    cast("from_bf16", out, output, made)
}

/// The same convolution over planes with their padding in them, where the padding of opposite sides must differ: cuDNN has one number
/// for both.
fn frame(g: &Geometry) -> Option<Geometry> {
    let extent = |d: usize| (g.kernel[d] - 1) * g.dilations[d] + 1;
    let alike = |d: usize| {
        let padded = g.input[d] + 2 * g.begin[d];
        padded >= extent(d) && (padded - extent(d)) / g.strides[d] + 1 == g.output[d]
    };
    let input = [0, 1].map(|d| (g.output[d] - 1) * g.strides[d] + extent(d));
    (!(alike(0) && alike(1))).then(|| Geometry { input, begin: [0, 0], ..g.clone() })
}

/// X as the convolution can read it.
fn framed(g: &Geometry, x: *const f32, gpu: &dyn Launcher) -> Result<(Geometry, *const f32)> {
    let Some(framed) = frame(g) else { return Ok((g.clone(), x)) };
    let target = gpu.scratch(g.n * g.c * framed.input[0] * framed.input[1])?;
    move_planes(g.n * g.c, g.input, framed.input, g.begin.map(int), x, target, gpu)?;
    Ok((framed, target))
}

fn move_planes(
    planes: usize,
    from: [usize; 2],
    to: [usize; 2],
    by: [i64; 2],
    source: *const f32,
    target: *mut f32,
    gpu: &dyn Launcher,
) -> Result<()> {
    let mut args = Args::default();
    args.n[..7].copy_from_slice(&[int(planes), int(from[0]), int(from[1]), int(to[0]), int(to[1]), by[0], by[1]]);
    (args.x[0], args.y[0]) = (source, target);
    gpu.launch("move_planes", elements(planes * to[0] * to[1]), &args)
}
