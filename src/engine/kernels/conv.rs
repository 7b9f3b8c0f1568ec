//! Convolution of images, and its gradients, as matrix products whose right side is unfolded a panel at a time.
//!
//! The output of a convolution is W [M, C·K₁·K₂] times a matrix with one row for every input channel and kernel element and one
//! column for every output position. Columns are unfolded into panels that stay in the cache (im2col, Chellapilla et al. 2006), a
//! few columns at a time as in the packing of a matrix product (Goto & van de Geijn 2008); stride, dilation, padding and groups
//! exist only there. Where positions lie next to each other and fill vectors, planes are framed by zeros instead, and a kernel
//! element is an offset. The input gradient is the same product with the weights transposed, one for each residue of the input
//! position modulo the stride. The weight gradient is the product of Ȳ with the transposed panel, and since both have positions
//! as their contiguous dimension it is a matrix of dot products. Everything is f32 in NCHW; nothing is transposed but the weights.
//!
//! How the work is divided depends on the shapes alone, so results do not depend on the number of threads.

use super::depthwise;
use super::dots::{DY_ROWS, Dots, dots_panels};
use super::outer::{self, Outer, Plan};
use super::product::{PANELS, Product, held};
use super::simd::{LANES, Level, run};
use super::tiles::Grid;
use super::unfold::Frame;
use super::winograd::{self, Kernels};
use super::winograd_sums;
use super::{Buffers, Pool, Raw, SCRATCH, SUMS, WEIGHTS};
use crate::error::{Error, Result};

/// X [N,C,H,W] ∗ W [M,C/g,K₁,K₂] → Y [N,M,O₁,O₂]: output (i, j) reads input i·stride − begin + t·dilation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Samples.
    pub n: usize,
    /// Channels of X.
    pub c: usize,
    /// Channels of Y.
    pub m: usize,
    /// Groups; they divide C and M.
    pub groups: usize,
    /// Height and width of X.
    pub input: [usize; 2],
    /// Height and width of Y.
    pub output: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Strides.
    pub strides: [usize; 2],
    /// Dilations.
    pub dilations: [usize; 2],
    /// Zeros above and to the left of X.
    pub begin: [usize; 2],
}

impl Geometry {
    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Whether Winograd's filtering serves these convolutions, and saves more than its transforms cost.
    fn winograd(&self, least: usize) -> bool {
        let (c, m) = (self.c / self.groups, self.m / self.groups);
        let plain = self.kernel == [3, 3] && self.strides == [1, 1] && self.dilations == [1, 1];
        plain && c.min(m) >= least && self.n > 0
    }

    /// The tiles of Y, for Winograd's filtering.
    fn grid(&self) -> Grid {
        Grid { n: self.n, source: self.input, target: self.output, begin: self.begin.map(|b| b as isize) }
    }

    /// Whether every group has one channel on either side.
    fn depthwise(&self) -> bool {
        self.groups == self.c && self.groups == self.m
    }

    /// Whether these are the numbers of elements of X, W and Y; the kernels read and write without looking again.
    fn check(&self, x: usize, weight: usize, y: usize) -> Result<()> {
        let plane = |p: [usize; 2]| p[0] * p[1];
        let divided = self.groups > 0 && self.c.is_multiple_of(self.groups) && self.m.is_multiple_of(self.groups);
        let steps = self.strides.iter().chain(&self.dilations).all(|s| *s > 0);
        let lengths = [self.n * self.c * plane(self.input), self.n * self.m * plane(self.output)] == [x, y];
        if divided && steps && lengths && weight * self.groups == self.m * self.c * self.taps() {
            return Ok(());
        }
        Err(Error::new(format!("X, W and Y of {x}, {weight} and {y} elements do not fit {self:?}")))
    }
}

/// A tensor [N, channels, …] of a product.
pub struct Side<P> {
    pub data: Raw<P>,
    pub channels: usize,
}

/// A kernel element that a pass reads: its place relative to the first element of a position, and its index in the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Tap {
    pub offset: [isize; 2],
    pub index: usize,
}

/// A grid of positions, what each reads from the source planes, and where it lies in the destination planes.
#[derive(Debug, Clone)]
pub struct Pass {
    pub grid: [usize; 2],
    /// Size of a source plane.
    pub source: [usize; 2],
    /// Step in the source from one grid element to the next.
    pub step: [usize; 2],
    pub taps: Vec<Tap>,
    /// Size of a destination plane.
    pub target: [usize; 2],
    /// The first grid element in the destination, and the step to the next.
    pub first: [usize; 2],
    pub spread: [usize; 2],
}

fn forward_pass(g: &Geometry) -> Pass {
    let offset = |axis: usize, t: usize| (t * g.dilations[axis]) as isize - g.begin[axis] as isize;
    let tap = |i: usize| {
        let (y, x) = (i / g.kernel[1], i % g.kernel[1]);
        Tap { offset: [offset(0, y), offset(1, x)], index: i }
    };
    Pass {
        grid: g.output,
        source: g.input,
        step: g.strides,
        taps: (0..g.taps()).map(tap).collect(),
        target: g.output,
        first: [0, 0],
        spread: [1, 1],
    }
}

/// Input places of one residue modulo the stride read the same kernel elements, at fixed distances in Ȳ.
fn gradient_passes(g: &Geometry) -> Vec<Pass> {
    let reads = |axis: usize, residue: usize| -> Vec<(usize, isize)> {
        let stride = g.strides[axis] as isize;
        let place = |t: usize| residue as isize + g.begin[axis] as isize - (t * g.dilations[axis]) as isize;
        (0..g.kernel[axis]).filter(|t| place(*t) % stride == 0).map(|t| (t, place(t) / stride)).collect()
    };
    let mut passes = Vec::new();
    for py in 0..g.strides[0].min(g.input[0]) {
        for px in 0..g.strides[1].min(g.input[1]) {
            let columns = reads(1, px);
            let row = |(t, y): (usize, isize)| {
                columns.iter().map(move |(u, x)| Tap { offset: [y, *x], index: t * g.kernel[1] + u })
            };
            passes.push(Pass {
                grid: [(g.input[0] - py).div_ceil(g.strides[0]), (g.input[1] - px).div_ceil(g.strides[1])],
                source: g.output,
                step: [1, 1],
                taps: reads(0, py).into_iter().flat_map(row).collect(),
                target: g.input,
                first: [py, px],
                spread: g.strides,
            });
        }
    }
    passes
}

/// Weights as [`Product`] reads them: for every group, blocks of `tile` rows, each [channels, taps, rows of the block].
///
/// `at(group, row, channel)` is where the kernel of a row and a channel starts.
fn pack(
    weight: &[f32],
    (groups, rows, channels): (usize, usize, usize),
    taps: &[Tap],
    tile: usize,
    at: impl Fn(usize, usize, usize) -> usize,
    out: &mut Vec<f32>,
) {
    out.clear();
    out.resize(groups * rows * channels * taps.len(), 0.0);
    let mut blocks = out.as_mut_slice();
    for group in 0..groups {
        for first in (0..rows).step_by(tile) {
            let width = tile.min(rows - first);
            let (block, rest) = blocks.split_at_mut(width * channels * taps.len());
            blocks = rest;
            for r in 0..width {
                for c in 0..channels {
                    let kernel = &weight[at(group, first + r, c)..];
                    for (t, tap) in taps.iter().enumerate() {
                        block[(c * taps.len() + t) * width + r] = kernel[tap.index];
                    }
                }
            }
        }
    }
}

/// The columns of one task: whole samples or a part of one, so that a task is long enough to be worth a thread's while.
fn tasks(pass: &Pass, framed: bool, n: usize, pitch: usize) -> Vec<std::ops::Range<usize>> {
    let plane = pass.grid[0] * pass.grid[1];
    // Panels end with their sample unless it is small.
    let unit = if framed || plane >= 2 * pitch { plane } else { n * plane };
    // Few columns are still divided.
    let share = (n * plane).div_ceil(PARTS).next_multiple_of(pitch);
    let span = if framed { 16 * pass.grid[1] } else { share.min(8 * PANELS * pitch) };
    let mut out = Vec::new();
    for start in (0..n * plane).step_by(unit.max(1)) {
        out.extend((start..start + unit).step_by(span).map(|q| q..(q + span).min(start + unit)));
    }
    out
}

#[allow(clippy::too_many_arguments)]
fn product(
    g: &Geometry,
    pass: &Pass,
    source: &Side<*const f32>,
    target: &Side<*mut f32>,
    packed: &[f32],
    bias: Option<&[f32]>,
    add: bool,
    level: Level,
    pool: &dyn Pool,
) {
    let tile = level.tile();
    let (channels, rows) = (source.channels / g.groups, target.channels / g.groups);
    let frame = Frame::new(pass);
    let tasks = tasks(pass, frame.is_some(), g.n, tile.1 * LANES);
    let numbers = held(pass, frame.as_ref(), channels, tile) + tile.0 * tile.1 * LANES;
    let (source_plane, target_plane) = (pass.source[0] * pass.source[1], pass.target[0] * pass.target[1]);
    let weights = Raw(packed.as_ptr());
    let bias = Raw(bias.map_or(std::ptr::null(), <[f32]>::as_ptr));
    pool.run(tasks.len() * g.groups, &|task| {
        let (group, columns) = (task / tasks.len(), tasks[task % tasks.len()].clone());
        let bias = bias.get();
        SCRATCH.with_buffer_of(numbers, |scratch| {
            // SAFETY: the level is one this processor has; the planes of the group are within the tensors, and no two tasks write
            // the same positions.
            unsafe {
                let job = Product {
                    pass,
                    frame,
                    source: source.data.get().add(group * channels * source_plane),
                    target: target.data.get().add(group * rows * target_plane),
                    channels_of_sample: [source.channels, target.channels],
                    channels,
                    rows,
                    weights: weights.get().add(group * rows * channels * pass.taps.len()),
                    bias: if bias.is_null() { bias } else { bias.add(group * rows) },
                    add,
                    columns,
                    scratch,
                };
                run(level, &job);
            }
        });
    });
}

/// W̄ as a sum of outer products, into `dw`.
fn outer_weight_gradient(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32], level: Level, pool: &dyn Pool) {
    let (rows, channels) = (g.m / g.groups, g.c / g.groups);
    let [x_plane, dy_plane] = [g.input, g.output].map(|p| p[0] * p[1]);
    let (plan, depth) = (Plan::new(g), channels * g.taps());
    // With few positions, adding up the parts would take longer than making them.
    let most = (g.n * dy_plane / PART_POSITIONS).min(PART_NUMBERS / dw.len().max(1));
    let parts = most.clamp(1, PARTS).min(g.n.max(1));
    let panels = plan.panels_of_task(channels, rows, (2 * PARTS).div_ceil(parts * g.groups));
    let slices = channels.div_ceil(panels * LANES);
    let numbers = plan.held(channels.min(panels * LANES), rows, level.tile());
    SUMS.with_buffer_of(parts * dw.len(), |sums| {
        let (px, pdy, psum) = (Raw(x.as_ptr()), Raw(dy.as_ptr()), Raw(sums));
        pool.run(g.groups * parts * slices, &|task| {
            let (group, part) = (task / (parts * slices), task / slices % parts);
            let channel = task % slices * panels * LANES;
            SCRATCH.with_buffer_of(numbers, |scratch| {
                // SAFETY: the level is one this processor has, and every task has weights of its own in its part's sums.
                unsafe {
                    let job = Outer {
                        plan: &plan,
                        x: px.get().add((group * channels + channel) * x_plane),
                        dy: pdy.get().add(group * rows * dy_plane),
                        channels_of_sample: [g.c, g.m],
                        channels: (panels * LANES).min(channels - channel),
                        rows,
                        samples: g.n * part / parts..g.n * (part + 1) / parts,
                        dw: psum.get().add((part * g.m + group * rows) * depth + channel * g.taps()),
                        depth,
                        scratch,
                    };
                    run(level, &job);
                }
            });
        });
        // SAFETY: the buffer has that many numbers, and the tasks have written them all.
        add_parts(unsafe { std::slice::from_raw_parts(sums, parts * dw.len()) }, dw);
    });
}

/// Adds up sums that were made apart.
pub fn add_parts(sums: &[f32], total: &mut [f32]) {
    let (first, rest) = sums.split_at(total.len());
    total.copy_from_slice(first);
    for part in rest.chunks_exact(total.len().max(1)) {
        total.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
}

/// Y = W ∗ X + B.
///
/// Slices have the lengths of X, W, B `[M]` and Y.
pub fn forward(
    g: &Geometry,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
    level: Level,
    pool: &dyn Pool,
) -> Result<()> {
    g.check(x.len(), weight.len(), y.len())?;
    if let Some(bias) = bias.filter(|b| b.len() != g.m) {
        return Err(Error::new(format!("a bias of {} elements for {} channels", bias.len(), g.m)));
    }
    if g.depthwise() {
        depthwise::forward(g, x, weight, bias, y, level, pool);
        return Ok(());
    }
    let pass = forward_pass(g);
    let (rows, channels) = (g.m / g.groups, g.c / g.groups);
    let source = Side { data: Raw(x.as_ptr()), channels: g.c };
    let target = Side { data: Raw(y.as_mut_ptr()), channels: g.m };
    if g.winograd(WINOGRAD) {
        let kernels = Kernels { rows, channels, apart: [channels * 9, 9], turned: false };
        winograd::convolve(&g.grid(), kernels, g.groups, &source, &target, weight, bias, false, level, pool);
        return Ok(());
    }
    let at = |group: usize, row: usize, channel: usize| ((group * rows + row) * channels + channel) * g.taps();
    WEIGHTS.with_buffer(|packed| {
        pack(weight, (g.groups, rows, channels), &pass.taps, level.tile().0, at, packed);
        product(g, &pass, &source, &target, packed, bias, false, level, pool);
    });
    Ok(())
}

/// X̄ = Wᵀ ∗ Ȳ, added to `dx` if `add`.
///
/// Slices have the lengths of Ȳ, W and X.
pub fn input_gradient(
    g: &Geometry,
    dy: &[f32],
    weight: &[f32],
    dx: &mut [f32],
    add: bool,
    level: Level,
    pool: &dyn Pool,
) -> Result<()> {
    g.check(dx.len(), weight.len(), dy.len())?;
    if g.depthwise() {
        depthwise::input_gradient(g, dy, weight, dx, add, level, pool);
        return Ok(());
    }
    let (rows, channels) = (g.c / g.groups, g.m / g.groups);
    if g.winograd(WINOGRAD) {
        let source = Side { data: Raw(dy.as_ptr()), channels: g.m };
        let target = Side { data: Raw(dx.as_mut_ptr()), channels: g.c };
        let grid = Grid { n: g.n, source: g.output, target: g.input, begin: g.begin.map(|b| 2 - b as isize) };
        let kernels = Kernels { rows, channels, apart: [9, rows * 9], turned: true };
        winograd::convolve(&grid, kernels, g.groups, &source, &target, weight, None, add, level, pool);
        return Ok(());
    }
    let at = |group: usize, row: usize, channel: usize| ((group * channels + channel) * rows + row) * g.taps();
    for pass in gradient_passes(g) {
        if pass.taps.is_empty() && add {
            continue;
        }
        let source = Side { data: Raw(dy.as_ptr()), channels: g.m };
        let target = Side { data: Raw(dx.as_mut_ptr()), channels: g.c };
        WEIGHTS.with_buffer(|packed| {
            pack(weight, (g.groups, rows, channels), &pass.taps, level.tile().0, at, packed);
            product(g, &pass, &source, &target, packed, None, add, level, pool);
        });
    }
    Ok(())
}

/// Channels of a group on either side from which on Winograd's filtering pays, and for the weight gradient, also where its other way would
/// have to unfold X.
const WINOGRAD: usize = 16;
const WINOGRAD_WEIGHT: usize = 64;
const WINOGRAD_UNFRAMED: usize = 64;
/// Parts of the columns whose weight gradients are summed apart, at most.
const PARTS: usize = 8;
/// Positions of a part, at least.
const PART_POSITIONS: usize = 512;
/// Numbers all parts together may take.
const PART_NUMBERS: usize = 8 << 20;

/// W̄ = Σ Ȳ·unfolded(X)ᵀ.
///
/// Slices have the lengths of X, Ȳ and W.
pub fn weight_gradient(
    g: &Geometry,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    level: Level,
    pool: &dyn Pool,
) -> Result<()> {
    g.check(x.len(), dw.len(), dy.len())?;
    if g.depthwise() {
        depthwise::weight_gradient(g, x, dy, dw, level, pool);
        return Ok(());
    }
    let forward = forward_pass(g);
    let frame = Frame::new(&forward);
    if g.winograd(if frame.is_some() { WINOGRAD_WEIGHT } else { WINOGRAD_UNFRAMED }) {
        let (x, dy) = (Raw(x.as_ptr()), Raw(dy.as_ptr()));
        let [x, dy] = [Side { data: x, channels: g.c }, Side { data: dy, channels: g.m }];
        winograd_sums::weight_gradient(&g.grid(), g.groups, &x, &dy, dw, level, pool);
        return Ok(());
    }
    if outer::pays(g.c / g.groups) {
        outer_weight_gradient(g, x, dy, dw, level, pool);
        return Ok(());
    }
    let tap = Tap { offset: [0, 0], index: 0 };
    let identity = Pass { source: g.output, step: [1, 1], taps: vec![tap], ..forward.clone() };
    let (rows, channels) = (g.m / g.groups, g.c / g.groups);
    let (left, right) = dots_panels(&forward, frame.as_ref());
    // Parts of whole rows where they are framed.
    let unit = if frame.is_some() { g.output[1] } else { 1 };
    let columns = g.n * g.output[0] * g.output[1] / unit;
    let parts = (PART_NUMBERS / dw.len().max(1))
        .clamp(1, PARTS)
        .min((columns * unit).div_ceil(LANES).max(1))
        .min(columns.max(1));
    // With few parts the rows are divided too.
    let slices = if g.groups == 1 { (PARTS / parts).clamp(1, rows.div_ceil(DY_ROWS)) } else { 1 };
    SUMS.with_buffer(|sums| {
        sums.clear();
        sums.resize(parts * dw.len(), 0.0);
        let depth = channels * g.taps();
        let [x_plane, dy_plane] = [g.input, g.output].map(|p| p[0] * p[1]);
        let (px, pdy, psum) = (Raw(x.as_ptr()), Raw(dy.as_ptr()), Raw(sums.as_mut_ptr()));
        pool.run(g.groups * parts * slices, &|task| {
            let (group, part, slice) = (task / (parts * slices), task / slices % parts, task % slices);
            let bounds = |i: usize| columns * i / parts * unit;
            let row = |i: usize| rows * i / slices;
            SCRATCH.with_buffer_of(DY_ROWS * left + right, |scratch| {
                // SAFETY: as in `product`; every task has rows of a part of its own in the sums.
                unsafe {
                    let first = group * rows + row(slice);
                    let job = Dots {
                        forward: &forward,
                        identity: &identity,
                        frame,
                        x: px.get().add(group * channels * x_plane),
                        dy: pdy.get().add(first * dy_plane),
                        channels_of_sample: [g.c, g.m],
                        channels,
                        rows: row(slice + 1) - row(slice),
                        columns: bounds(part)..bounds(part + 1),
                        sum: psum.get().add(part * g.m * depth + first * depth),
                        scratch,
                    };
                    run(level, &job);
                }
            });
        });
        add_parts(sums, dw);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Backwards, error, numbers};
    use super::*;

    /// Calls `f` with the places of X, W and Y of every product of the convolution.
    fn products(g: &Geometry, mut f: impl FnMut(usize, usize, usize)) {
        let (rows, channels) = (g.m / g.groups, g.c / g.groups);
        for (n, m, c) in (0..g.n * g.m * channels).map(|i| (i / (g.m * channels), i / channels % g.m, i % channels)) {
            let plane = n * g.c + m / rows * channels + c;
            for (i, j) in (0..g.output[0] * g.output[1]).map(|p| (p / g.output[1], p % g.output[1])) {
                for t in 0..g.taps() {
                    let y = (i * g.strides[0] + t / g.kernel[1] * g.dilations[0]).checked_sub(g.begin[0]);
                    let x = (j * g.strides[1] + t % g.kernel[1] * g.dilations[1]).checked_sub(g.begin[1]);
                    if let (Some(y), Some(x)) = (y, x)
                        && y < g.input[0]
                        && x < g.input[1]
                    {
                        let from = (plane * g.input[0] + y) * g.input[1] + x;
                        let to = ((n * g.m + m) * g.output[0] + i) * g.output[1] + j;
                        f(from, (m * channels + c) * g.taps() + t, to);
                    }
                }
            }
        }
    }

    fn geometry(
        [n, c, m, groups]: [usize; 4],
        input: [usize; 2],
        kernel: [usize; 2],
        strides: [usize; 2],
        dilations: [usize; 2],
        (begin, end): ([usize; 2], [usize; 2]),
    ) -> Geometry {
        let output =
            [0, 1].map(|i| (input[i] + begin[i] + end[i] - dilations[i] * (kernel[i] - 1) - 1) / strides[i] + 1);
        Geometry { n, c, m, groups, input, output, kernel, strides, dilations, begin }
    }

    /// Every level against the definition, in f64: forward with and without bias, both gradients, and adding to what is there.
    fn agrees(g: &Geometry) {
        let len = |a: usize, p: [usize; 2]| g.n * a * p[0] * p[1];
        let (x, dy) = (numbers(1, len(g.c, g.input)), numbers(2, len(g.m, g.output)));
        let (w, bias) = (numbers(3, g.m * g.c / g.groups * g.taps()), numbers(4, g.m));
        let (mut y, mut dx, mut dw) = (vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; w.len()]);
        products(g, |i, j, k| {
            y[k] += f64::from(x[i]) * f64::from(w[j]);
            dx[i] += f64::from(dy[k]) * f64::from(w[j]);
            dw[j] += f64::from(dy[k]) * f64::from(x[i]);
        });
        let plane = g.output[0] * g.output[1];
        let with_bias: Vec<f64> = y.iter().enumerate().map(|(i, v)| v + f64::from(bias[i / plane % g.m])).collect();
        for level in Level::available() {
            // What is there before must not matter.
            let mut got = vec![f32::NAN; y.len()];
            forward(g, &x, &w, None, &mut got, level, &Backwards).expect("fits");
            assert!(error(&got, &y) < 1e-5, "{level:?} forward {} {g:?}", error(&got, &y));
            forward(g, &x, &w, Some(&bias), &mut got, level, &Backwards).expect("fits");
            assert!(error(&got, &with_bias) < 1e-5, "{level:?} bias {} {g:?}", error(&got, &with_bias));
            let mut got = vec![f32::NAN; dx.len()];
            input_gradient(g, &dy, &w, &mut got, false, level, &Backwards).expect("fits");
            assert!(error(&got, &dx) < 1e-5, "{level:?} input {} {g:?}", error(&got, &dx));
            input_gradient(g, &dy, &w, &mut got, true, level, &Backwards).expect("fits");
            let twice: Vec<f64> = dx.iter().map(|v| 2.0 * v).collect();
            assert!(error(&got, &twice) < 1e-5, "{level:?} added {} {g:?}", error(&got, &twice));
            let mut got = vec![f32::NAN; dw.len()];
            weight_gradient(g, &x, &dy, &mut got, level, &Backwards).expect("fits");
            assert!(error(&got, &dw) < 1e-5, "{level:?} weight {} {g:?}", error(&got, &dw));
        }
    }

    #[test]
    fn convolutions_of_every_kind_agree_with_the_definition() {
        let (one, none) = ([1, 1], ([0, 0], [0, 0]));
        let around = |p: usize| ([p, p], [p, p]);
        agrees(&geometry([2, 16, 16, 1], [32, 32], [3, 3], one, one, around(1)));
        // Winograd's filtering: whole tiles and parts, channels that are no vectors, several chunks, any padding, groups.
        agrees(&geometry([3, 37, 41, 1], [9, 11], [3, 3], one, one, around(1)));
        agrees(&geometry([2, 32, 33, 1], [5, 8], [3, 3], one, one, ([0, 2], [1, 0])));
        agrees(&geometry([2, 34, 32, 1], [6, 7], [3, 3], one, one, ([3, 4], [0, 5])));
        agrees(&geometry([40, 32, 48, 1], [2, 2], [3, 3], one, one, around(1)));
        agrees(&geometry([5, 33, 32, 1], [40, 40], [3, 3], one, one, around(1)));
        agrees(&geometry([2, 66, 70, 2], [4, 4], [3, 3], one, one, around(1)));
        agrees(&geometry([1, 32, 32, 1], [3, 70], [3, 3], one, one, none));
        agrees(&geometry([3, 5, 7, 1], [9, 11], [3, 3], one, one, around(1)));
        agrees(&geometry([3, 8, 16, 1], [8, 8], [3, 3], [2, 2], one, around(1)));
        agrees(&geometry([2, 3, 10, 1], [13, 17], [5, 3], [3, 2], one, ([2, 1], [0, 3])));
        agrees(&geometry([2, 4, 6, 1], [12, 12], [3, 3], one, [2, 3], around(2)));
        agrees(&geometry([2, 4, 6, 1], [12, 10], [3, 2], [2, 3], [3, 2], around(2)));
        agrees(&geometry([2, 6, 9, 3], [10, 10], [3, 3], one, one, around(1)));
        agrees(&geometry([2, 20, 20, 20], [9, 9], [3, 3], [2, 2], one, around(1)));
        // One block of positions, more of them, and too many for outer products.
        agrees(&geometry([21, 6, 9, 1], [14, 14], [3, 3], one, one, ([0, 0], [0, 0])));
        agrees(&geometry([25, 6, 9, 1], [14, 14], [3, 3], one, one, ([0, 0], [1, 1])));
        agrees(&geometry([8, 40, 21, 1], [8, 8], [3, 3], one, one, around(1)));
        agrees(&geometry([8, 34, 22, 2], [8, 8], [1, 1], one, one, none));
        agrees(&geometry([9, 34, 22, 2], [8, 8], [3, 3], one, one, around(1)));
        agrees(&geometry([2, 5, 5, 5], [30, 33], [5, 5], one, one, around(2)));
        agrees(&geometry([2, 5, 5, 5], [14, 9], [3, 5], [2, 3], [2, 1], ([1, 0], [0, 3])));
        agrees(&geometry([3, 40, 40, 40], [2, 2], [3, 3], [2, 2], one, around(1)));
        // Depthwise in several bands.
        agrees(&geometry([2, 17, 17, 17], [50, 41], [3, 3], one, one, around(1)));
        agrees(&geometry([1, 16, 16, 16], [90, 41], [5, 3], [2, 3], [2, 1], around(1)));
        agrees(&geometry([2, 3, 3, 3], [9, 20], [7, 7], one, one, around(3)));
        agrees(&geometry([2, 3, 3, 3], [8, 8], [2, 2], [3, 3], one, none));
        agrees(&geometry([4, 33, 17, 1], [7, 7], [1, 1], one, one, none));
        agrees(&geometry([4, 9, 18, 1], [8, 8], [1, 1], [2, 2], one, none));
        agrees(&geometry([1, 3, 20, 1], [16, 16], [4, 4], [4, 4], one, none));
        agrees(&geometry([5, 70, 40, 1], [2, 2], [3, 3], one, one, around(1)));
        agrees(&geometry([3, 2, 3, 1], [1, 1], [1, 1], one, one, none));
        agrees(&geometry([1, 600, 4, 1], [5, 5], [1, 1], one, one, none));
        agrees(&geometry([2, 1, 1, 1], [6, 50], [7, 7], one, one, around(5)));
        // Rows of X that no window reads.
        agrees(&geometry([2, 2, 3, 1], [8, 8], [2, 2], [3, 3], one, none));
    }

    #[test]
    fn random_convolutions_agree_with_the_definition() {
        for seed in 0..60 {
            let r: Vec<usize> = numbers(100 + seed, 24).iter().map(|v| ((v + 1.0) * 500.0) as usize).collect();
            let groups = 1 + r[0] % 3;
            let kernel = [1 + r[1] % 4, 1 + r[2] % 4];
            let dilations = [1 + r[3] % 2, 1 + r[4] % 2];
            let pads = |i: usize| [r[i] % 3, r[i + 1] % 3];
            let input = [0, 1].map(|i| dilations[i] * (kernel[i] - 1) + 1 + r[9 + i] % 20);
            let sizes = [1 + r[11] % 4, groups * (1 + r[12] % 9), groups * (1 + r[13] % 19), groups];
            let strides = [1 + r[14] % 3, 1 + r[15] % 3];
            agrees(&geometry(sizes, input, kernel, strides, dilations, (pads(5), pads(7))));
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_errors() {
        let g = geometry([1, 2, 3, 1], [4, 4], [3, 3], [1, 1], [1, 1], ([1, 1], [1, 1]));
        let (x, w) = (vec![0.0; 32], vec![0.0; 54]);
        let run = |w: &[f32], y: usize| forward(&g, &x, w, None, &mut vec![0.0; y], Level::best(), &Backwards);
        assert!(run(&w, 48).is_ok());
        assert!(run(&w, 47).is_err());
        assert!(run(&w[1..], 48).is_err());
        let biased = |n: usize| {
            let (bias, mut y) = (vec![0.0; n], vec![0.0; 48]);
            forward(&g, &x, &w, Some(&bias), &mut y, Level::best(), &Backwards)
        };
        assert!(biased(3).is_ok());
        assert!(biased(2).is_err());
    }
}
