//! Depthwise convolution and its gradients, sixteen channels at a time.
//!
//! Where every group has one channel on either side there is no matrix product. Planes are turned around so that channels become lanes,
//! positions are summed over what they read, and the sums are turned back. What each position reads is worked out once for all planes
//! ([`Plan`]); padding, strides and dilations exist only there.

use super::conv::{Geometry, add_parts};
use super::simd::{Job, LANES, Lanes, Level, run};
use super::turn::{turn, turn_back};
use super::unfold::fill_zero;
use super::{Buffers, Pool, Raw, SCRATCH, SUMS, with_sizes};
use std::ops::Range;

/// Positions that are summed together, at most.
const POSITIONS: usize = 6;
/// Numbers of a plane and what it reads that are turned around at once, about.
const BAND: usize = 2048;
/// Numbers of a task: enough to be worth a thread's while.
const NUMBERS: usize = 1 << 14;
/// Parts of the samples whose weight gradients are summed apart, times channels in vectors.
const TASKS: usize = 32;

/// What each position along one axis reads: pairs of a kernel element and a place in the source.
type Reads = Vec<Vec<(usize, usize)>>;

fn forward_reads(g: &Geometry, axis: usize) -> Reads {
    let read = |position: usize, t: usize| {
        let at = (position * g.strides[axis] + t * g.dilations[axis]).checked_sub(g.begin[axis])?;
        (at < g.input[axis]).then_some((t, at))
    };
    (0..g.output[axis]).map(|i| (0..g.kernel[axis]).filter_map(|t| read(i, t)).collect()).collect()
}

/// The same pairs, from where inputs are read to what reads them.
fn gradient_reads(g: &Geometry, axis: usize) -> Reads {
    let mut reads = vec![Vec::new(); g.input[axis]];
    for (position, of) in forward_reads(g, axis).iter().enumerate() {
        of.iter().for_each(|(t, at)| reads[*at].push((*t, position)));
    }
    reads
}

/// Positions of one row, `apart` from each other, that read the same kernel elements from places `step` apart.
struct Block {
    target: usize,
    apart: usize,
    count: usize,
    source: usize,
    step: usize,
    taps: Range<usize>,
}

/// Rows of positions, and what they read.
struct Band {
    target: Range<usize>,
    source: Range<usize>,
    blocks: Range<usize>,
}

/// What is summed for one plane.
struct Plan {
    /// Numbers of a plane that is read, of one that is written, and of a kernel.
    source: usize,
    target: usize,
    kernel: usize,
    bands: Vec<Band>,
    blocks: Vec<Block>,
    /// Kernel elements, and their places from the source of a block on.
    taps: Vec<(usize, usize)>,
}

impl Plan {
    fn forward(g: &Geometry) -> Self {
        Self::new(g, [0, 1].map(|axis| forward_reads(g, axis)), [g.input, g.output], 1, g.strides[1])
    }

    fn gradient(g: &Geometry) -> Self {
        Self::new(g, [0, 1].map(|axis| gradient_reads(g, axis)), [g.output, g.input], g.strides[1], 1)
    }

    /// Columns `apart` from each other read places `step` apart, where they read the same kernel elements.
    fn new(g: &Geometry, reads: [Reads; 2], [source, target]: [[usize; 2]; 2], apart: usize, step: usize) -> Self {
        let first = |of: &[(usize, usize)]| of.iter().map(|(_, at)| *at).min();
        // Columns with the same kernel elements: the first, and how many.
        let mut runs = Vec::new();
        for residue in 0..apart.min(target[1]) {
            let mut at = residue;
            while at < target[1] {
                let follows = |count: usize| {
                    let next = reads[1].get(at + count * apart)?;
                    let moved = reads[1][at].iter().map(|(t, place)| (*t, place + count * step));
                    moved.eq(next.iter().copied()).then_some(())
                };
                let count = (1..).take_while(|count| follows(*count).is_some()).count() + 1;
                runs.push((at, count));
                at += count * apart;
            }
        }
        let (mut bands, mut blocks, mut taps): (Vec<Band>, Vec<Block>, Vec<(usize, usize)>) = Default::default();
        for (i, row) in reads[0].iter().enumerate() {
            let places = row.iter().map(|(_, at)| *at);
            let read = places.clone().min().map_or(0..0, |low| low..places.max().unwrap_or(low) + 1);
            let read = read.start * source[1]..read.end * source[1];
            let rows = i * target[1]..(i + 1) * target[1];
            let joined = |a: &Range<usize>, b: &Range<usize>| match (a.is_empty(), b.is_empty()) {
                (_, true) => a.clone(),
                (true, _) => b.clone(),
                _ => a.start.min(b.start)..a.end.max(b.end),
            };
            match bands.last_mut() {
                Some(b) if joined(&b.source, &read).len() + rows.end - b.target.start <= BAND => {
                    b.source = joined(&b.source, &read);
                    b.target.end = rows.end;
                }
                _ => bands.push(Band { target: rows.clone(), source: read, blocks: blocks.len()..blocks.len() }),
            }
            for (column, count) in &runs {
                let columns = &reads[1][*column];
                let origin = [first(row), first(columns)].map(|at| at.unwrap_or(0));
                let start = taps.len();
                for (t, y) in row {
                    let tap = |(u, x): &(usize, usize)| {
                        (t * g.kernel[1] + u, (y - origin[0]) * source[1] + x - origin[1])
                    };
                    taps.extend(columns.iter().map(tap));
                }
                for done in (0..*count).step_by(POSITIONS) {
                    blocks.push(Block {
                        target: rows.start + column + done * apart,
                        apart,
                        count: POSITIONS.min(count - done),
                        source: if start < taps.len() {
                            origin[0] * source[1] + origin[1] + done * step
                        } else {
                            bands.last().map_or(0, |b| b.source.start)
                        },
                        step,
                        taps: start..taps.len(),
                    });
                }
            }
            if let Some(band) = bands.last_mut() {
                band.blocks.end = blocks.len();
            }
        }
        let [kernel, source, target] = [g.kernel, source, target].map(|p| p[0] * p[1]);
        Self { source, target, kernel, bands, blocks, taps }
    }

    /// Numbers of scratch: the kernels of sixteen channels, and a band of their planes on either side.
    fn held(&self) -> usize {
        let most = |len: fn(&Band) -> usize| self.bands.iter().map(len).max().unwrap_or(0);
        (self.kernel + most(|b| b.source.len()) + most(|b| b.target.len())) * LANES
    }
}

/// Sums of up to sixteen channels of some samples.
struct Sums<'a> {
    plan: &'a Plan,
    /// Planes of the first channel in the first sample.
    source: *const f32,
    target: *mut f32,
    /// Channels here, and of a sample.
    channels: usize,
    all: usize,
    samples: Range<usize>,
    /// Of the first channel.
    weights: *const f32,
    /// One for each channel, or null.
    bias: *const f32,
    /// Adds to the destination.
    add: bool,
    scratch: *mut f32,
}

/// P positions: target = bias + Σ weight·source over the kernel elements.
struct Positions<'a, const P: usize> {
    taps: &'a [(usize, usize)],
    bias: *const f32,
    weights: *const f32,
    source: *const f32,
    step: usize,
    target: *mut f32,
    apart: usize,
}

impl<const P: usize> Job for Positions<'_, P> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        // SAFETY: the band holds what positions read and write.
        unsafe {
            let mut sums = [L::load(self.bias); P];
            for (element, place) in self.taps {
                let (weight, from) = (L::load(self.weights.add(element * LANES)), self.source.add(place * LANES));
                for (p, sum) in sums.iter_mut().enumerate() {
                    *sum = weight.mul_add(L::load(from.add(p * self.step * LANES)), *sum);
                }
            }
            for (p, sum) in sums.iter().enumerate() {
                sum.store(self.target.add(p * self.apart * LANES));
            }
        }
    }
}

#[inline(always)]
unsafe fn positions<L: Lanes, const P: usize, const U: usize>(
    taps: &[(usize, usize)],
    [bias, weights, source]: [*const f32; 3],
    step: usize,
    target: *mut f32,
    apart: usize,
) {
    unsafe { L::outlined(&Positions::<P> { taps, bias, weights, source, step, target, apart }) }
}

impl Job for Sums<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let Plan { source, target, kernel, bands, blocks, taps } = self.plan;
        let mut bias = [0.0; LANES];
        // SAFETY: planes lie within the tensors, and scratch holds the kernels and a band.
        unsafe {
            if !self.bias.is_null() {
                std::ptr::copy_nonoverlapping(self.bias, bias.as_mut_ptr(), self.channels);
            }
            let weights = self.scratch;
            turn::<L>(self.weights, *kernel, self.channels, *kernel, weights, LANES);
            let read = weights.add(kernel * LANES);
            for sample in self.samples.clone() {
                let from = self.source.add(sample * self.all * source);
                let to = self.target.add(sample * self.all * target);
                for band in bands {
                    let written = read.add(band.source.len() * LANES);
                    let from = from.add(band.source.start);
                    turn::<L>(from, *source, self.channels, band.source.len(), read, LANES);
                    for b in &blocks[band.blocks.clone()] {
                        let from = read.add((b.source - band.source.start) * LANES).cast_const();
                        let to = written.add((b.target - band.target.start) * LANES);
                        let operands = [bias.as_ptr(), weights.cast_const(), from];
                        let taps = &taps[b.taps.clone()];
                        with_sizes!(positions, L, b.count, 1, [1 2 3 4 5 6][1], (taps, operands, b.step, to, b.apart));
                    }
                    let to = to.add(band.target.start);
                    turn_back::<L>(written, LANES, band.target.len(), to, *target, self.channels, self.add);
                }
            }
        }
    }
}

/// The convolutions of `plan`: one bias for each channel, added to `target` if `add`.
#[allow(clippy::too_many_arguments)]
fn sums(
    g: &Geometry,
    plan: &Plan,
    source: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    target: &mut [f32],
    add: bool,
    level: Level,
    pool: &dyn Pool,
) {
    let groups = g.c.div_ceil(LANES);
    let of_task = NUMBERS.div_ceil(LANES * (plan.source + plan.target).max(1));
    let (source, target) = (Raw(source.as_ptr()), Raw(target.as_mut_ptr()));
    let (weight, bias) = (Raw(weight.as_ptr()), Raw(bias.map_or(std::ptr::null(), <[f32]>::as_ptr)));
    pool.run(g.n.div_ceil(of_task) * groups, &|task| {
        let (first, channel) = (task / groups * of_task, task % groups * LANES);
        SCRATCH.with_buffer_of(plan.held(), |scratch| {
            let bias = bias.get();
            // SAFETY: the level is one this processor has, and every task has planes of its own.
            unsafe {
                let job = Sums {
                    plan,
                    source: source.get().add(channel * plan.source),
                    target: target.get().add(channel * plan.target),
                    channels: LANES.min(g.c - channel),
                    all: g.c,
                    samples: first..(first + of_task).min(g.n),
                    weights: weight.get().add(channel * plan.kernel),
                    bias: if bias.is_null() { bias } else { bias.add(channel) },
                    add,
                    scratch,
                };
                run(level, &job);
            }
        });
    });
}

/// Y = W ∗ X + B.
pub fn forward(
    g: &Geometry,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
    level: Level,
    pool: &dyn Pool,
) {
    sums(g, &Plan::forward(g), x, weight, bias, y, false, level, pool);
}

/// X̄, added to `dx` if `add`.
pub fn input_gradient(
    g: &Geometry,
    dy: &[f32],
    weight: &[f32],
    dx: &mut [f32],
    add: bool,
    level: Level,
    pool: &dyn Pool,
) {
    sums(g, &Plan::gradient(g), dy, weight, None, dx, add, level, pool);
}

/// The weight gradient of up to sixteen channels, summed over some samples.
struct Dots<'a> {
    plan: &'a Plan,
    /// Planes of the first channel in the first sample.
    x: *const f32,
    dy: *const f32,
    /// Channels here, and of a sample.
    channels: usize,
    all: usize,
    samples: Range<usize>,
    /// One number for each kernel element of each channel.
    sum: *mut f32,
    scratch: *mut f32,
}

/// P positions: sums [kernel elements] of vectors += y·x.
struct Products<'a, const P: usize> {
    taps: &'a [(usize, usize)],
    y: *const f32,
    apart: usize,
    x: *const f32,
    step: usize,
    sums: *mut f32,
}

impl<const P: usize> Job for Products<'_, P> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        // SAFETY: the band holds the positions and what they read.
        unsafe {
            let mut y = [L::splat(0.0); P];
            for (p, y) in y.iter_mut().enumerate() {
                *y = L::load(self.y.add(p * self.apart * LANES));
            }
            for (element, place) in self.taps {
                let (to, from) = (self.sums.add(element * LANES), self.x.add(place * LANES));
                let mut sum = L::load(to);
                for (p, y) in y.iter().enumerate() {
                    sum = y.mul_add(L::load(from.add(p * self.step * LANES)), sum);
                }
                sum.store(to);
            }
        }
    }
}

#[inline(always)]
unsafe fn products<L: Lanes, const P: usize, const U: usize>(
    taps: &[(usize, usize)],
    y: *const f32,
    apart: usize,
    x: *const f32,
    step: usize,
    sums: *mut f32,
) {
    unsafe { L::outlined(&Products::<P> { taps, y, apart, x, step, sums }) }
}

impl Job for Dots<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let Plan { source, target, kernel, bands, blocks, taps } = self.plan;
        // SAFETY: planes lie within the tensors, and scratch holds the sums and a band.
        unsafe {
            let sums = self.scratch;
            fill_zero::<L>(sums, kernel * LANES);
            let x = sums.add(kernel * LANES);
            for sample in self.samples.clone() {
                for band in bands {
                    let y = x.add(band.source.len() * LANES);
                    let from = self.x.add(sample * self.all * source + band.source.start);
                    turn::<L>(from, *source, self.channels, band.source.len(), x, LANES);
                    let from = self.dy.add(sample * self.all * target + band.target.start);
                    turn::<L>(from, *target, self.channels, band.target.len(), y, LANES);
                    for b in &blocks[band.blocks.clone()] {
                        let x = x.add((b.source - band.source.start) * LANES).cast_const();
                        let y = y.add((b.target - band.target.start) * LANES).cast_const();
                        let taps = &taps[b.taps.clone()];
                        with_sizes!(products, L, b.count, 1, [1 2 3 4 5 6][1], (taps, y, b.apart, x, b.step, sums));
                    }
                }
            }
            turn_back::<L>(sums, LANES, *kernel, self.sum, *kernel, self.channels, false);
        }
    }
}

/// W̄, into `dw`; samples are summed in parts where there are few channels.
pub fn weight_gradient(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32], level: Level, pool: &dyn Pool) {
    let plan = Plan::forward(g);
    let groups = g.c.div_ceil(LANES);
    let parts = TASKS.div_ceil(groups.max(1)).min(g.n).max(1);
    SUMS.with_buffer_of(parts * dw.len(), |sums| {
        let (px, pdy, psum) = (Raw(x.as_ptr()), Raw(dy.as_ptr()), Raw(sums));
        pool.run(groups * parts, &|task| {
            let (part, channel) = (task / groups, task % groups * LANES);
            SCRATCH.with_buffer_of(plan.held(), |scratch| {
                // SAFETY: the level is one this processor has, and every task has numbers of its own in the sums.
                unsafe {
                    let job = Dots {
                        plan: &plan,
                        x: px.get().add(channel * plan.source),
                        dy: pdy.get().add(channel * plan.target),
                        channels: LANES.min(g.c - channel),
                        all: g.c,
                        samples: g.n * part / parts..g.n * (part + 1) / parts,
                        sum: psum.get().add((part * g.c + channel) * plan.kernel),
                        scratch,
                    };
                    run(level, &job);
                }
            });
        });
        // SAFETY: the buffer has that many numbers, and every task has written its own.
        add_parts(unsafe { std::slice::from_raw_parts(sums, parts * dw.len()) }, dw);
    });
}
