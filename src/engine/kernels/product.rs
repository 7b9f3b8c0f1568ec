//! Convolution as a sum over channels and kernel elements, for sixteen rows of the output at a time.
//!
//! What a block of positions reads is turned around ([`super::plan`]), so that the channels at a place lie next to each other. A register tile
//! holds some positions times sixteen rows: every channel of every position is multiplied by a vector of weights, as in any matrix product (Goto
//! & van de Geijn 2008). The tiles of a block are turned back into planes.

use super::conv::Geometry;
use super::plan::{Plan, turn_source};
use super::simd::{Job, LANES, Lanes, Level, run};
use super::tile::{Positions, positions};
use super::turn::{copy, fill_zero, turn_back};
use super::{Buffers, Pool, Raw, SCRATCH, WEIGHTS, with_sizes};

/// Positions of a block, at most.
pub const POSITIONS: usize = 96;
/// Weights of a vector of rows that are used for all positions of a block before the next: they stay in a cache meanwhile.
const DEPTH: usize = 1024;
/// Numbers of the source that are turned around at once.
const TURNED: usize = 1 << 15;
/// Rows of a task, at most.
const ROWS: usize = 256;
/// Tasks, at least, if there are rows enough to divide.
const TASKS: usize = 16;

/// What a product computes: `rows` of every group from `channels`.
#[derive(Clone, Copy)]
pub struct Kernels<'a> {
    pub weight: &'a [f32],
    pub rows: usize,
    pub channels: usize,
    /// Numbers from the weights of one row to the next, and of one channel to the next.
    pub apart: [usize; 2],
}

impl Kernels<'_> {
    /// Lays out the weights of a vector of `rows` rows, the first of which begins at `first`: [kernel elements, channels, lanes].
    fn pack(&self, taps: usize, first: usize, rows: usize, out: &mut [f32]) {
        let Kernels { weight, channels, apart, .. } = *self;
        let pairs = (0..taps).flat_map(|t| (0..channels).map(move |c| (t, c)));
        for ((tap, channel), out) in pairs.zip(out.chunks_exact_mut(LANES)) {
            let from = first + channel * apart[1] + tap;
            for (r, out) in out.iter_mut().enumerate() {
                *out = if r < rows { weight[from + r * apart[0]] } else { 0.0 };
            }
        }
    }
}

/// Some rows of one block of positions of some samples.
struct Product<'a> {
    plan: &'a Plan,
    block: usize,
    samples: usize,
    /// Planes of the first channel and of the first row in the first sample.
    source: *const f32,
    target: *mut f32,
    /// Channels a sample has in the source and the destination.
    planes: [usize; 2],
    channels: usize,
    rows: usize,
    /// Of the first rows; those of the next vector of rows follow.
    weights: *const f32,
    /// One for each row, or null.
    bias: *const f32,
    /// Adds to the destination.
    add: bool,
    scratch: *mut f32,
}

/// Channels that are turned around at once.
fn channels_at_once(plan: &Plan, channels: usize) -> usize {
    let most = (DEPTH / plan.taps.max(1)).min(TURNED / plan.most().0).max(LANES);
    channels.div_ceil(channels.div_ceil(most).max(1)).next_multiple_of(LANES)
}

/// Numbers from one place to the next: no power of two, which would share the sets of a cache.
fn pitch(channels: usize) -> usize {
    channels.next_multiple_of(2 * LANES) + LANES
}

/// Numbers of scratch: what a block reads, what it writes, and biases.
fn held(plan: &Plan, channels: usize, rows: usize) -> usize {
    let (places, positions) = plan.most();
    places * pitch(channels_at_once(plan, channels)) + (positions + 1) * rows.next_multiple_of(LANES)
}

impl Job for Product<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let Plan { taps, source, target, .. } = self.plan;
        let block = &self.plan.blocks[self.block];
        let (at_once, panels) = (channels_at_once(self.plan, self.channels), self.rows.div_ceil(LANES));
        let (pitch, len) = (pitch(at_once), block.positions.len());
        let out_rows = self.samples * len * LANES;
        // SAFETY: scratch holds what the block reads and writes; planes lie within the tensors.
        unsafe {
            let out = self.scratch.add(self.plan.most().0 * pitch);
            let bias = out.add(panels * out_rows);
            fill_zero::<L>(bias, panels * LANES);
            if !self.bias.is_null() {
                copy::<L>(self.bias, bias, self.rows, false);
            }
            let mut channel = 0;
            while channel == 0 || channel < self.channels {
                let channels = at_once.min(self.channels - channel);
                let from = self.source.add(channel * source);
                turn_source::<L>(
                    block,
                    from,
                    [*source, self.planes[0] * source],
                    channels,
                    self.samples,
                    self.scratch,
                    pitch,
                );
                let mut panel = 0;
                while panel < panels {
                    let wide = L::TILE.1.min(panels - panel);
                    for class in &block.classes {
                        // Positions of the last samples may be missing.
                        let count = class.positions.len() / self.plan.samples * self.samples;
                        let mut first = 0;
                        while first < count {
                            let high = L::TILE.0.min(count - first);
                            let job = Positions {
                                taps: &class.taps,
                                places: class.places(first),
                                apart: class.positions.len(),
                                source: self.scratch,
                                pitch,
                                channels,
                                weights: self.weights.add((panel * taps * self.channels + channel) * LANES),
                                of_tap: self.channels * LANES,
                                of_rows: taps * self.channels * LANES,
                                out: out.add(panel * out_rows),
                                positions: &class.positions[first..],
                                out_rows,
                                bias: if channel == 0 { bias.add(panel * LANES) } else { std::ptr::null() },
                            };
                            with_sizes!(positions, L, high, wide, [1 2 3 4 5 6 7 8][1 2 3], (&job));
                            first += high;
                        }
                    }
                    panel += wide;
                }
                channel += channels.max(1);
            }
            for (panel, sample) in (0..panels).flat_map(|p| (0..self.samples).map(move |s| (p, s))) {
                let (row, from) = (panel * LANES, out.add(panel * out_rows + sample * len * LANES));
                let to = self.target.add((sample * self.planes[1] + row) * target + block.positions.start);
                turn_back::<L>(from, LANES, len, to, *target, LANES.min(self.rows - row), self.add);
            }
        }
    }
}

/// target = kernels ∗ source + bias for every group, added to what is there if `add`.
#[allow(clippy::too_many_arguments)]
pub fn convolve(
    g: &Geometry,
    plan: &Plan,
    kernels: &Kernels<'_>,
    source: &[f32],
    target: &mut [f32],
    bias: Option<&[f32]>,
    add: bool,
    level: Level,
    pool: &dyn Pool,
) {
    let Kernels { rows, channels, apart, .. } = *kernels;
    let panels = rows.div_ceil(LANES);
    let blocks = g.n.div_ceil(plan.samples) * plan.blocks.len();
    // Vectors of rows of a task.
    let slices = TASKS.div_ceil((blocks * g.groups).max(1)).max(rows.div_ceil(ROWS)).clamp(1, panels.max(1));
    let of_task = panels.div_ceil(slices);
    let slices = panels.div_ceil(of_task.max(1));
    let of_panel = plan.taps * channels * LANES;
    let numbers = held(plan, channels, of_task * LANES);
    WEIGHTS.with_buffer_of(g.groups * panels * of_panel, |packed| {
        let (packed, source, target) = (Raw(packed), Raw(source.as_ptr()), Raw(target.as_mut_ptr()));
        let bias = Raw(bias.map_or(std::ptr::null(), <[f32]>::as_ptr));
        pool.run(g.groups * panels, &|task| {
            let (group, row) = (task / panels, task % panels * LANES);
            let first = group * rows * channels * plan.taps + row * apart[0];
            // SAFETY: every task has a part of its own.
            let out = unsafe { std::slice::from_raw_parts_mut(packed.get().add(task * of_panel), of_panel) };
            kernels.pack(plan.taps, first, LANES.min(rows - row), out);
        });
        pool.run(blocks * g.groups * slices, &|task| {
            let (block, group) = (task / (g.groups * slices), task / slices % g.groups);
            let panel = task % slices * of_task;
            let (sample, row) = (block / plan.blocks.len() * plan.samples, group * rows + panel * LANES);
            SCRATCH.with_buffer_of(numbers, |scratch| {
                let bias = bias.get();
                // SAFETY: the level is one this processor has, and no two tasks write the same positions of the same rows.
                unsafe {
                    let job = Product {
                        plan,
                        block: block % plan.blocks.len(),
                        samples: plan.samples.min(g.n - sample),
                        source: source.get().add((sample * g.groups + group) * channels * plan.source),
                        target: target.get().add((sample * g.groups * rows + row) * plan.target),
                        planes: [g.groups * channels, g.groups * rows],
                        channels,
                        rows: (of_task * LANES).min(rows - panel * LANES),
                        weights: packed.get().add((group * panels + panel) * of_panel),
                        bias: if bias.is_null() { bias } else { bias.add(row) },
                        add,
                        scratch,
                    };
                    run(level, &job);
                }
            });
        });
    });
}
