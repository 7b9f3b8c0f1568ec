//! The weight gradient as a sum of outer products, one for each position.
//!
//! W̄ [M, C·K₁·K₂] is Ȳ [M, Q] times what positions read of X [C·K₁·K₂, Q], transposed. With planes turned around, so that channels become
//! lanes, this is a matrix product as any other, over positions; a kernel element only changes which vectors of X are read
//! ([`super::plan`]), whatever the stride, dilation and padding. Where X has few channels, rows of Ȳ are the vectors and channels
//! of X the numbers they are multiplied by.

use super::conv::{Geometry, add_parts};
use super::plan::{Plan, turn_source};
use super::simd::{Job, LANES, Lanes, Level, run};
use super::tile::{tile, tile_from};
use super::turn::{copy, fill_zero, turn, turn_back};
use super::{Buffers, Pool, Raw, SCRATCH, SUMS, with_sizes};
use std::ops::Range;

/// Positions of a block, at most: so many that vectors of both sides stay in the nearest cache.
const POSITIONS: usize = 192;
/// Rows of Ȳ that are turned around at once.
const ROWS: usize = 128;
/// Numbers that the sums of a task may take, about.
const TASK_SUMS: usize = 1 << 17;
/// Tasks, at least, if there are channels enough to divide.
const TASKS: usize = 16;
/// Parts of the samples whose weight gradients are summed apart, at most.
const PARTS: usize = 8;
/// Positions of a part, at least: adding up parts of fewer would take longer than making them.
const PART_POSITIONS: usize = 512;
/// Numbers all parts together may take.
const PART_NUMBERS: usize = 8 << 20;

/// The weight gradient of some channels of one group, summed over some samples.
struct Outer<'a> {
    plan: &'a Plan,
    /// Planes of the first channel and of the first row in the first sample.
    x: *const f32,
    dy: *const f32,
    /// Channels a sample has in X and in Ȳ.
    planes: [usize; 2],
    channels: usize,
    rows: usize,
    /// Whether rows of Ȳ become vectors, and not channels of X.
    turned: bool,
    samples: Range<usize>,
    /// The first row's weights of the channels; rows are `depth` apart.
    dw: *mut f32,
    depth: usize,
    scratch: *mut f32,
}

/// Parts of scratch, in numbers: vectors of X and of Ȳ, and sums.
struct Held {
    right: usize,
    left: usize,
    sums: usize,
}

impl Held {
    fn new(plan: &Plan, channels: usize, rows: usize) -> Self {
        let (places, positions) = plan.most();
        let [channels, rows] = [channels, rows].map(|n| n.next_multiple_of(LANES));
        Self { right: places * channels, left: positions * rows.min(ROWS), sums: rows * channels * plan.taps }
    }

    fn all(&self, (high, wide): (usize, usize)) -> usize {
        self.right + self.left + self.sums + high * wide * LANES
    }
}

/// One side of a block's products: sixteen channels of all its positions or places after the other.
#[derive(Clone, Copy)]
struct Side {
    data: *const f32,
    /// Numbers from sixteen channels to the next.
    apart: usize,
    /// The first channel, a whole number of vectors, and how many there are.
    first: usize,
    len: usize,
}

impl Job for Outer<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let Plan { taps, source, target, samples, blocks } = self.plan;
        let held = Held::new(self.plan, self.channels, self.rows);
        // SAFETY: scratch holds the vectors of a block of both sides, the sums and a tile; planes lie within the tensors.
        unsafe {
            let right = self.scratch;
            let left = right.add(held.right);
            let sums = left.add(held.left);
            fill_zero::<L>(sums, held.sums);
            for first in self.samples.clone().step_by(*samples) {
                let count = (*samples).min(self.samples.end - first);
                for block in blocks {
                    let len = block.positions.len();
                    let apart = [samples * len * LANES, (1 + samples * block.source.len()) * LANES];
                    for (panel, channel) in (0..self.channels).step_by(LANES).enumerate() {
                        let from = self.x.add((first * self.planes[0] + channel) * source);
                        let planes = [*source, self.planes[0] * source];
                        let to = right.add(panel * apart[1]);
                        turn_source::<L>(block, from, planes, LANES.min(self.channels - channel), count, to, LANES);
                    }
                    for start in (0..self.rows).step_by(ROWS) {
                        let end = (start + ROWS).min(self.rows);
                        for (panel, row) in (start..end).step_by(LANES).enumerate() {
                            for sample in 0..count {
                                let plane = (first + sample) * self.planes[1] + row;
                                let from = self.dy.add(plane * target + block.positions.start);
                                let to = left.add(panel * apart[0] + sample * len * LANES);
                                turn::<L>(from, *target, LANES.min(end - row), len, to, LANES);
                            }
                        }
                        let rows = Side { data: left, apart: apart[0], first: start, len: end - start };
                        let channels = Side { data: right, apart: apart[1], first: 0, len: self.channels };
                        // All positions of Y read the same kernel elements, in order.
                        let places = block.classes.first().map_or(&[][..], |class| class.places(0));
                        let places = places.chunks_exact((samples * len).max(1));
                        let places: Vec<&[usize]> = places.map(|places| &places[..count * len]).collect();
                        if self.turned {
                            self.add::<L, true>(channels, rows, &places, sums, sums.add(held.sums));
                        } else {
                            self.add::<L, false>(rows, channels, &places, sums, sums.add(held.sums));
                        }
                    }
                }
            }
            if self.turned {
                for row in (0..self.rows).step_by(LANES) {
                    let (len, to) = (self.channels * taps, self.dw.add(row * self.depth));
                    turn_back::<L>(sums.add(row * len), LANES, len, to, self.depth, LANES.min(self.rows - row), false);
                }
                return;
            }
            let of_tap = self.rows * LANES;
            for (panel, row) in (0..self.channels.div_ceil(LANES)).flat_map(|p| (0..self.rows).map(move |r| (p, r))) {
                let (from, channel) = (sums.add(panel * taps * of_tap + row * LANES), panel * LANES);
                let (rows, to) = (LANES.min(self.channels - channel), self.dw.add(row * self.depth + channel * taps));
                if *taps == 1 {
                    copy::<L>(from, to, rows, false);
                } else {
                    turn_back::<L>(from, of_tap, *taps, to, *taps, rows, false);
                }
            }
        }
    }
}

impl Outer<'_> {
    /// Adds a block's products to the sums. X, which the `places` of each kernel element move, is the side of the numbers if `TURNED`, and
    /// sums are [vectors, numbers, kernel elements, lanes]; else it is that of the vectors, and they are [vectors, kernel elements, numbers, lanes].
    #[inline(always)]
    unsafe fn add<L: Lanes, const TURNED: bool>(
        &self,
        numbers: Side,
        vectors: Side,
        places: &[&[usize]],
        sums: *mut f32,
        result: *mut f32,
    ) {
        let (panels, taps) = (vectors.len.div_ceil(LANES), places.len());
        let all = if TURNED { self.channels } else { self.rows };
        let (of_number, of_tap) = if TURNED { (taps * LANES, LANES) } else { (LANES, all * LANES) };
        let mut panel = 0;
        while panel < panels {
            let wide = L::TILE.1.min(panels - panel);
            let ld = wide * LANES;
            for (left, from) in (0..numbers.len).step_by(LANES).enumerate() {
                let end = numbers.len.min(from + LANES);
                for (tap, places) in places.iter().enumerate() {
                    let mut number = from;
                    while number < end {
                        let high = L::TILE.0.min(end - number);
                        // SAFETY: as in `run`.
                        unsafe {
                            let a = numbers.data.add(left * numbers.apart + number - from);
                            let b =
                                [0, 1, 2].map(|v| panel + v.min(wide - 1)).map(|p| vectors.data.add(p * vectors.apart));
                            let c = [0, 1, 2].map(|v| result.add(v.min(wide - 1) * LANES));
                            if TURNED {
                                with_sizes!(tile_from, L, high, wide, [1 2 3 4 5 6 7 8][1 2 3], (places, a, LANES, b, c, ld));
                            } else {
                                with_sizes!(tile, L, high, wide, [1 2 3 4 5 6 7 8][1 2 3], (places, a, LANES, b, c, ld));
                            }
                            for (v, sum) in c.iter().enumerate().take(wide) {
                                let vector = (vectors.first / LANES + panel + v) * all * taps * LANES;
                                let to = sums.add(vector + (numbers.first + number) * of_number + tap * of_tap);
                                for r in 0..high {
                                    copy::<L>(sum.add(r * ld), to.add(r * of_number), LANES, true);
                                }
                            }
                        }
                        number += high;
                    }
                }
            }
            panel += wide;
        }
    }
}

/// Whether vectors are filled well enough by so many channels.
fn fill(channels: usize) -> bool {
    channels.next_multiple_of(LANES) * 2 <= channels * 3
}

/// W̄, into `dw`.
pub fn weight_gradient(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32], level: Level, pool: &dyn Pool) {
    let (rows, channels) = (g.m / g.groups, g.c / g.groups);
    let plan = Plan::forward(g, POSITIONS);
    let depth = channels * plan.taps;
    // With few positions, adding up the parts would take longer than making them.
    let most = (g.n * plan.target / PART_POSITIONS).min(PART_NUMBERS / dw.len().max(1));
    let parts = most.clamp(1, PARTS).min(g.n.max(1));
    let panels = channels.div_ceil(LANES);
    // Every task turns Ȳ around for itself; more kernel elements make that worth while with fewer channels.
    let least = 8usize.div_ceil(plan.taps.max(1));
    let most = (TASK_SUMS / (plan.taps * rows * LANES).max(1)).max(1);
    let of_task = panels.div_ceil(TASKS.div_ceil(parts * g.groups)).max(least).min(most).min(panels).max(1);
    let slices = panels.div_ceil(of_task);
    let turned = !fill(channels) && channels < rows;
    let numbers = Held::new(&plan, channels.min(of_task * LANES), rows).all(level.tile());
    SUMS.with_buffer_of(parts * dw.len(), |sums| {
        let (px, pdy, psum) = (Raw(x.as_ptr()), Raw(dy.as_ptr()), Raw(sums));
        pool.run(g.groups * parts * slices, &|task| {
            let (group, part) = (task / (parts * slices), task / slices % parts);
            let channel = task % slices * of_task * LANES;
            SCRATCH.with_buffer_of(numbers, |scratch| {
                // SAFETY: the level is one this processor has, and every task has weights of its own in its part's sums.
                unsafe {
                    let job = Outer {
                        plan: &plan,
                        x: px.get().add((group * channels + channel) * plan.source),
                        dy: pdy.get().add(group * rows * plan.target),
                        planes: [g.c, g.m],
                        channels: (of_task * LANES).min(channels - channel),
                        rows,
                        turned,
                        samples: g.n * part / parts..g.n * (part + 1) / parts,
                        dw: psum.get().add((part * g.m + group * rows) * depth + channel * plan.taps),
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
