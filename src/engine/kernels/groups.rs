//! Convolution of many groups with few channels each, depthwise above all, and its gradients: sixteen groups at a time.
//!
//! With a few channels on either side there is hardly a matrix product. Planes are turned around so that groups become lanes
//! ([`super::plan`]): for every pair of channels of a group, a kernel element is a vector of weights, one for each group.

use super::conv::{Geometry, add_parts};
use super::plan::{Plan, turn_source};
use super::simd::{Job, LANES, Lanes, Level, run};
use super::turn::{fill_zero, turn, turn_back};
use super::{Buffers, Pool, Raw, SCRATCH, SUMS, with_sizes};
use std::ops::Range;

/// Positions that are summed together, at most.
const TILE: usize = 6;
/// Numbers of planes that are turned around at once, about, on either side of a group.
const NUMBERS: usize = 1024;
/// Positions of a task, about, over lanes and channels: enough to be worth a thread's while.
const TASK: usize = 1 << 14;
/// Parts of the samples whose weight gradients are summed apart, times vectors of groups.
const TASKS: usize = 32;

/// Channels of a group that are read and written, and numbers from one kernel to the next for either.
#[derive(Clone, Copy)]
struct Channels {
    read: usize,
    written: usize,
    apart: [usize; 2],
}

impl Channels {
    /// Numbers of a group's weights.
    fn weights(self, taps: usize) -> usize {
        self.read * self.written * taps
    }
}

/// Positions of a block, at most.
fn positions(g: &Geometry) -> usize {
    (NUMBERS * g.groups / g.c.max(g.m).max(1)).max(TILE)
}

/// Numbers of scratch: the weights of sixteen groups, and what a block reads and writes.
fn held(plan: &Plan, channels: Channels) -> usize {
    let (places, positions) = plan.most();
    (channels.weights(plan.taps) + channels.read * places + channels.written * positions) * LANES
}

/// Sums of up to sixteen groups of some samples.
struct Sums<'a> {
    plan: &'a Plan,
    channels: Channels,
    /// Planes of the first channel in the first sample.
    source: *const f32,
    target: *mut f32,
    /// Groups here, and of a sample.
    groups: usize,
    all: usize,
    samples: Range<usize>,
    /// Of the first group.
    weights: *const f32,
    /// One for each channel that is written, or null.
    bias: *const f32,
    /// Adds to the destination.
    add: bool,
    scratch: *mut f32,
}

/// P positions: out = bias + Σ weight·source over channels and kernel elements.
struct Positions<'a> {
    taps: &'a [usize],
    /// For every kernel element the places that positions read, from the first one's on; those of one and the next are `apart`.
    places: &'a [usize],
    apart: usize,
    bias: *const f32,
    /// A vector for every kernel element; those of one channel and the next are `of_channel` numbers apart.
    weights: *const f32,
    of_channel: usize,
    source: *const f32,
    of_source: usize,
    channels: usize,
    out: *mut f32,
    positions: &'a [usize],
}

struct Sized<'a, const P: usize>(&'a Positions<'a>);

impl<const P: usize> Job for Sized<'_, P> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let job = self.0;
        // SAFETY: the block holds what positions read and write.
        unsafe {
            let mut sums = [L::load(job.bias); P];
            for channel in 0..job.channels {
                let weights = job.weights.add(channel * job.of_channel);
                let source = job.source.add(channel * job.of_source);
                for (k, tap) in job.taps.iter().enumerate() {
                    let weight = L::load(weights.add(tap * LANES));
                    let places = job.places.as_ptr().add(k * job.apart);
                    for (p, sum) in sums.iter_mut().enumerate() {
                        *sum = weight.mul_add(L::load(source.add(*places.add(p) * LANES)), *sum);
                    }
                }
            }
            for (p, sum) in sums.iter().enumerate() {
                sum.store(job.out.add(job.positions[p] * LANES));
            }
        }
    }
}

#[inline(always)]
unsafe fn positions_of<L: Lanes, const P: usize, const U: usize>(job: &Positions<'_>) {
    unsafe { L::outlined(&Sized::<P>(job)) }
}

impl Job for Sums<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let Plan { taps, source, target, .. } = self.plan;
        let Channels { read, written, apart } = self.channels;
        let (places, most) = self.plan.most();
        let mut bias = [0.0; LANES];
        // SAFETY: planes lie within the tensors, and scratch holds the weights and a block.
        unsafe {
            let weights = self.scratch;
            let of_group = self.channels.weights(*taps);
            turn::<L>(self.weights, of_group, self.groups, of_group, weights, LANES);
            let right = weights.add(of_group * LANES);
            let out = right.add(read * places * LANES);
            for first in self.samples.clone().step_by(self.plan.samples) {
                let samples = self.plan.samples.min(self.samples.end - first);
                for block in &self.plan.blocks {
                    for channel in 0..read {
                        let from = self.source.add((first * self.all * read + channel) * source);
                        let planes = [read * source, self.all * read * source];
                        let to = right.add(channel * places * LANES);
                        turn_source::<L>(block, from, planes, self.groups, samples, to, LANES);
                    }
                    for row in 0..written {
                        if !self.bias.is_null() {
                            for (group, bias) in bias.iter_mut().enumerate().take(self.groups) {
                                *bias = *self.bias.add(group * written + row);
                            }
                        }
                        let out = out.add(row * most * LANES);
                        for class in &block.classes {
                            let count = class.positions.len() / self.plan.samples * samples;
                            for at in (0..count).step_by(TILE) {
                                let job = Positions {
                                    taps: &class.taps,
                                    places: class.places(at),
                                    apart: class.positions.len(),
                                    bias: bias.as_ptr(),
                                    weights: weights.add(row * apart[0] * LANES),
                                    of_channel: apart[1] * LANES,
                                    source: right,
                                    of_source: places * LANES,
                                    channels: read,
                                    out,
                                    positions: &class.positions[at..],
                                };
                                with_sizes!(positions_of, L, TILE.min(count - at), 1, [1 2 3 4 5 6][1], (&job));
                            }
                        }
                        let len = block.positions.len();
                        for sample in 0..samples {
                            let plane = (first + sample) * self.all * written + row;
                            let to = self.target.add(plane * target + block.positions.start);
                            let from = out.add(sample * len * LANES);
                            turn_back::<L>(from, LANES, len, to, written * target, self.groups, self.add);
                        }
                    }
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
    channels: Channels,
    source: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    target: &mut [f32],
    add: bool,
    level: Level,
    pool: &dyn Pool,
) {
    let Channels { read, written, .. } = channels;
    let vectors = g.groups.div_ceil(LANES);
    let numbers = LANES * (read * plan.source + written * plan.target).max(1);
    let of_task = TASK.div_ceil(numbers).next_multiple_of(plan.samples);
    let of_group = channels.weights(plan.taps);
    let (source, target) = (Raw(source.as_ptr()), Raw(target.as_mut_ptr()));
    let (weight, bias) = (Raw(weight.as_ptr()), Raw(bias.map_or(std::ptr::null(), <[f32]>::as_ptr)));
    pool.run(g.n.div_ceil(of_task) * vectors, &|task| {
        let (first, group) = (task / vectors * of_task, task % vectors * LANES);
        SCRATCH.with_buffer_of(held(plan, channels), |scratch| {
            let bias = bias.get();
            // SAFETY: the level is one this processor has, and every task has planes of its own.
            unsafe {
                let job = Sums {
                    plan,
                    channels,
                    source: source.get().add(group * read * plan.source),
                    target: target.get().add(group * written * plan.target),
                    groups: LANES.min(g.groups - group),
                    all: g.groups,
                    samples: first..(first + of_task).min(g.n),
                    weights: weight.get().add(group * of_group),
                    bias: if bias.is_null() { bias } else { bias.add(group * written) },
                    add,
                    scratch,
                };
                run(level, &job);
            }
        });
    });
}

/// Channels of a group in X and in Y, as a convolution has them.
fn channels(g: &Geometry, taps: usize) -> Channels {
    let (read, written) = (g.c / g.groups, g.m / g.groups);
    Channels { read, written, apart: [read * taps, taps] }
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
    let plan = Plan::forward(g, positions(g));
    sums(g, &plan, channels(g, plan.taps), x, weight, bias, y, false, level, pool);
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
    let plan = Plan::gradient(g, positions(g));
    let Channels { read, written, apart } = channels(g, plan.taps);
    let turned = Channels { read: written, written: read, apart: [apart[1], apart[0]] };
    sums(g, &plan, turned, dy, weight, None, dx, add, level, pool);
}

/// The weight gradient of up to sixteen groups, summed over some samples.
struct Dots<'a> {
    plan: &'a Plan,
    channels: Channels,
    /// Planes of the first channel in the first sample.
    x: *const f32,
    dy: *const f32,
    /// Groups here, and of a sample.
    groups: usize,
    all: usize,
    samples: Range<usize>,
    /// One number for each weight of each group.
    sum: *mut f32,
    scratch: *mut f32,
}

/// P positions: sums [kernel elements] of vectors += y·x.
struct Products<'a, const P: usize> {
    taps: usize,
    places: &'a [usize],
    apart: usize,
    y: *const f32,
    x: *const f32,
    sums: *mut f32,
}

impl<const P: usize> Job for Products<'_, P> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        // SAFETY: the block holds the positions and what they read.
        unsafe {
            let mut y = [L::splat(0.0); P];
            for (p, y) in y.iter_mut().enumerate() {
                *y = L::load(self.y.add(p * LANES));
            }
            for tap in 0..self.taps {
                let places = self.places.as_ptr().add(tap * self.apart);
                let to = self.sums.add(tap * LANES);
                let mut sum = L::load(to);
                for (p, y) in y.iter().enumerate() {
                    sum = y.mul_add(L::load(self.x.add(*places.add(p) * LANES)), sum);
                }
                sum.store(to);
            }
        }
    }
}

#[inline(always)]
unsafe fn products<L: Lanes, const P: usize, const U: usize>(
    taps: usize,
    places: &[usize],
    apart: usize,
    y: *const f32,
    x: *const f32,
    sums: *mut f32,
) {
    unsafe { L::outlined(&Products::<P> { taps, places, apart, y, x, sums }) }
}

impl Job for Dots<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let Plan { taps, source, target, .. } = self.plan;
        let Channels { read, written, apart } = self.channels;
        let ((places, most), of_group) = (self.plan.most(), self.channels.weights(*taps));
        // SAFETY: planes lie within the tensors, and scratch holds the sums and a block.
        unsafe {
            let sums = self.scratch;
            fill_zero::<L>(sums, of_group * LANES);
            let right = sums.add(of_group * LANES);
            let left = right.add(read * places * LANES);
            for first in self.samples.clone().step_by(self.plan.samples) {
                let samples = self.plan.samples.min(self.samples.end - first);
                for block in &self.plan.blocks {
                    let len = block.positions.len();
                    for channel in 0..read {
                        let from = self.x.add((first * self.all * read + channel) * source);
                        let planes = [read * source, self.all * read * source];
                        let to = right.add(channel * places * LANES);
                        turn_source::<L>(block, from, planes, self.groups, samples, to, LANES);
                    }
                    for (row, sample) in (0..written).flat_map(|r| (0..samples).map(move |s| (r, s))) {
                        let plane = (first + sample) * self.all * written + row;
                        let from = self.dy.add(plane * target + block.positions.start);
                        let to = left.add((row * most + sample * len) * LANES);
                        turn::<L>(from, written * target, self.groups, len, to, LANES);
                    }
                    // All positions of Y read the same kernel elements, in order.
                    let Some(class) = block.classes.first() else { continue };
                    for (row, channel) in (0..written).flat_map(|r| (0..read).map(move |c| (r, c))) {
                        let sums = sums.add((row * apart[0] + channel * apart[1]) * LANES);
                        let x = right.add(channel * places * LANES).cast_const();
                        for at in (0..samples * len).step_by(TILE) {
                            let y = left.add((row * most + at) * LANES).cast_const();
                            let (places, apart) = (class.places(at), class.positions.len());
                            let count = TILE.min(samples * len - at);
                            with_sizes!(products, L, count, 1, [1 2 3 4 5 6][1], (*taps, places, apart, y, x, sums));
                        }
                    }
                }
            }
            turn_back::<L>(sums, LANES, of_group, self.sum, of_group, self.groups, false);
        }
    }
}

/// W̄, into `dw`; samples are summed in parts where there are few groups.
pub fn weight_gradient(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32], level: Level, pool: &dyn Pool) {
    let plan = Plan::forward(g, positions(g));
    let channels = channels(g, plan.taps);
    let vectors = g.groups.div_ceil(LANES);
    let parts = TASKS.div_ceil(vectors.max(1)).min(g.n).max(1);
    SUMS.with_buffer_of(parts * dw.len(), |sums| {
        let (px, pdy, psum) = (Raw(x.as_ptr()), Raw(dy.as_ptr()), Raw(sums));
        pool.run(vectors * parts, &|task| {
            let (part, group) = (task / vectors, task % vectors * LANES);
            SCRATCH.with_buffer_of(held(&plan, channels), |scratch| {
                // SAFETY: the level is one this processor has, and every task has numbers of its own in the sums.
                unsafe {
                    let job = Dots {
                        plan: &plan,
                        channels,
                        x: px.get().add(group * channels.read * plan.source),
                        dy: pdy.get().add(group * channels.written * plan.target),
                        groups: LANES.min(g.groups - group),
                        all: g.groups,
                        samples: g.n * part / parts..g.n * (part + 1) / parts,
                        sum: psum.get().add((part * g.groups + group) * channels.weights(plan.taps)),
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
