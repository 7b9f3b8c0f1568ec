//! The weight gradient as a sum of outer products, one for each position.
//!
//! W̄ [M, C·K₁·K₂] is Ȳ [M, Q] times what positions read of X [C·K₁·K₂, Q], transposed. With planes turned around, so that channels become
//! lanes, this is a matrix product as any other, over positions; a kernel element only changes which vectors of X are read
//! ([`Plan`]), whatever the stride, dilation and padding.

use super::conv::Geometry;
use super::product::tile;
use super::simd::{Job, LANES, Lanes};
use super::turn::{turn, turn_back};
use super::unfold::{copy, fill_zero};
use super::with_sizes;
use std::ops::Range;

/// Positions of a block: so many that vectors of both sides stay in the nearest cache.
const POSITIONS: usize = 192;
/// Rows of Ȳ that are turned around at once.
const ROWS: usize = 128;
/// Numbers that the sums of a task may take.
const SUMS: usize = 1 << 17;

/// Some positions of a plane, and the numbers of a plane of X that they read.
struct Block {
    positions: Range<usize>,
    source: Range<usize>,
    /// For every kernel element, and every sample and position: the place of what it reads, behind a vector of zeros.
    places: Vec<usize>,
}

/// Which positions read what.
pub struct Plan {
    taps: usize,
    /// Numbers of a plane of X and of Ȳ.
    source: usize,
    target: usize,
    /// Samples of a block; several have blocks of whole planes.
    samples: usize,
    blocks: Vec<Block>,
}

impl Plan {
    pub fn new(g: &Geometry) -> Self {
        let [taps, source, target] = [g.kernel, g.input, g.output].map(|p| p[0] * p[1]);
        let samples = (POSITIONS / target.max(1)).clamp(1, g.n.max(1));
        let count = target.div_ceil(POSITIONS).max(1);
        let blocks = (0..count).map(|i| Self::block(g, samples, target * i / count..target * (i + 1) / count)).collect();
        Self { taps, source, target, samples, blocks }
    }

    fn block(g: &Geometry, samples: usize, positions: Range<usize>) -> Block {
        // Where a position's kernel element lies along an axis, if it does.
        let at = |axis: usize, position: usize, t: usize| {
            let at = (position * g.strides[axis] + t * g.dilations[axis]).checked_sub(g.begin[axis])?;
            (at < g.input[axis]).then_some(at)
        };
        let row = |position: usize| position / g.output[1];
        let rows = row(positions.start)..row(positions.end.max(1) - 1) + 1;
        let read = rows.flat_map(|i| (0..g.kernel[0]).filter_map(move |t| at(0, i, t)));
        let (low, high) = read.fold((usize::MAX, 0), |(low, high), y| (low.min(y), high.max(y + 1)));
        let source = if low < high { low * g.input[1]..high * g.input[1] } else { 0..0 };
        let mut places = Vec::with_capacity(g.kernel[0] * g.kernel[1] * samples * positions.len());
        for (t, u) in (0..g.kernel[0]).flat_map(|t| (0..g.kernel[1]).map(move |u| (t, u))) {
            for sample in 0..samples {
                places.extend(positions.clone().map(|p| match (at(0, row(p), t), at(1, p % g.output[1], u)) {
                    (Some(y), Some(x)) => (1 + sample * source.len() + y * g.input[1] + x - source.start) * LANES,
                    _ => 0,
                }));
            }
        }
        Block { positions, source, places }
    }

    /// Numbers that the blocks' vectors of sixteen channels of X and of sixteen rows of Ȳ take.
    fn panels(&self) -> (usize, usize) {
        let most = |len: fn(&Block) -> usize| self.blocks.iter().map(len).max().unwrap_or(0);
        let (source, positions) = (most(|b| b.source.len()), most(|b| b.positions.len()));
        ((1 + self.samples * source) * LANES, self.samples * positions * LANES)
    }

    /// Numbers of scratch for a task.
    pub fn held(&self, channels: usize, rows: usize, (high, wide): (usize, usize)) -> usize {
        let (panels, (right, left)) = (channels.div_ceil(LANES), self.panels());
        let sums = panels * self.taps * rows * LANES;
        panels * right + rows.min(ROWS).div_ceil(LANES) * left + sums + high * wide * LANES
    }

    /// Channels of a task, in vectors: all of them in about `slices` slices, with sums of `rows` rows that are not too many.
    pub fn panels_of_task(&self, channels: usize, rows: usize, slices: usize) -> usize {
        let panels = channels.div_ceil(LANES).max(1);
        // Every task turns Ȳ around for itself.
        let least = 8usize.div_ceil(self.taps.max(1));
        let most = (SUMS / (self.taps * rows * LANES).max(1)).max(1);
        panels.div_ceil(slices.max(1)).max(least).min(most).min(panels)
    }
}

/// Whether vectors are filled well enough by so many channels.
pub fn pays(channels: usize) -> bool {
    channels.next_multiple_of(LANES) * 2 <= channels * 3
}

/// The weight gradient of some channels of one group, summed over some samples.
pub struct Outer<'a> {
    pub plan: &'a Plan,
    /// Planes of the first channel and of the first row in the first sample.
    pub x: *const f32,
    pub dy: *const f32,
    /// Channels a sample has in X and in Ȳ.
    pub channels_of_sample: [usize; 2],
    pub channels: usize,
    pub rows: usize,
    pub samples: Range<usize>,
    /// The first row's weights of the channels; rows are `depth` apart.
    pub dw: *mut f32,
    pub depth: usize,
    pub scratch: *mut f32,
}

impl Job for Outer<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let Plan { taps, source, target, samples, blocks } = self.plan;
        let (panels, (right_len, left_len)) = (self.channels.div_ceil(LANES), self.plan.panels());
        let of_tap = self.rows * LANES;
        // SAFETY: scratch holds the vectors of a block of both sides, the sums and a tile; planes lie within the tensors.
        unsafe {
            let right = self.scratch;
            let left = right.add(panels * right_len);
            let sums = left.add(self.rows.min(ROWS).div_ceil(LANES) * left_len);
            let result = sums.add(panels * taps * of_tap);
            fill_zero::<L>(sums, panels * taps * of_tap);
            for first in self.samples.clone().step_by(*samples) {
                let count = (*samples).min(self.samples.end - first);
                for block in blocks {
                    let positions = count * block.positions.len();
                    for (panel, sample) in (0..panels).flat_map(|p| (0..count).map(move |s| (p, s))) {
                        let channel = panel * LANES;
                        let plane = (first + sample) * self.channels_of_sample[0] + channel;
                        let from = self.x.add(plane * source + block.source.start);
                        let to = right.add(panel * right_len);
                        if sample == 0 {
                            fill_zero::<L>(to, LANES);
                        }
                        let (rows, len) = (LANES.min(self.channels - channel), block.source.len());
                        turn::<L>(from, *source, rows, len, to.add((1 + sample * len) * LANES), LANES);
                    }
                    for start in (0..self.rows).step_by(ROWS) {
                        let end = (start + ROWS).min(self.rows);
                        for (row, sample) in
                            (start..end).step_by(LANES).flat_map(|r| (0..count).map(move |s| (r, s)))
                        {
                            let plane = (first + sample) * self.channels_of_sample[1] + row;
                            let (rows, len) = (LANES.min(end - row), block.positions.len());
                            let from = self.dy.add(plane * target + block.positions.start);
                            let to = left.add((row - start) / LANES * left_len + sample * len * LANES);
                            turn::<L>(from, *target, rows, len, to, LANES);
                        }
                        let mut panel = 0;
                        while panel < panels {
                            let wide = L::TILE.1.min(panels - panel);
                            for row in (start..end).step_by(LANES) {
                                for tap in 0..*taps {
                                    let all = samples * block.positions.len();
                                    let places = &block.places[tap * all..tap * all + positions];
                                    let a = left.add((row - start) / LANES * left_len);
                                    let b = right.add(panel * right_len);
                                    let to = sums.add((panel * taps + tap) * of_tap + row * LANES);
                                    let rows = LANES.min(end - row);
                                    let job = (places, a.cast_const(), b.cast_const(), right_len, rows, wide);
                                    add_product::<L>(job, result, to, taps * of_tap);
                                }
                            }
                            panel += wide;
                        }
                    }
                }
            }
            for (panel, row) in (0..panels).flat_map(|p| (0..self.rows).map(move |r| (p, r))) {
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

/// Up to sixteen rows of Ȳ times some vectors of X, added to the rows' sums; those of one vector and the next are `apart`.
#[inline(always)]
unsafe fn add_product<L: Lanes>(
    (places, a, b, right_len, rows, wide): (&[usize], *const f32, *const f32, usize, usize, usize),
    result: *mut f32,
    to: *mut f32,
    apart: usize,
) {
    let mut row = 0;
    while row < rows {
        let high = L::TILE.0.min(rows - row);
        // SAFETY: as in `run`.
        unsafe {
            let b = [0, 1, 2].map(|v: usize| v.min(wide - 1)).map(|v| (b.add(v * right_len), result.add(v * LANES)));
            let ([b0, b1, b2], ld) = (b, wide * LANES);
            let (b, c) = ([b0.0, b1.0, b2.0], [b0.1, b1.1, b2.1]);
            let a = a.add(row);
            with_sizes!(tile, L, high, wide, [1 2 3 4 5 6 7 8][1 2 3], (places, a, LANES, b, std::ptr::null(), c, ld));
            for (v, r) in (0..wide).flat_map(|v| (0..high).map(move |r| (v, r))) {
                copy::<L>(c[v].add(r * ld), to.add(v * apart + (row + r) * LANES), LANES, true);
            }
        }
        row += high;
    }
}
