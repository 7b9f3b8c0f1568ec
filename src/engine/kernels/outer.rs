//! The weight gradient where there are few positions: a sum of outer products.
//!
//! W̄ [M, C·K₁·K₂] is Ȳ [M, Q] times the unfolded X [C·K₁·K₂, Q] transposed. With many positions Q its elements are dot products
//! ([`super::dots`]); with few, adding up the lanes of every dot product would take longer than the products, so X is
//! transposed instead, and W̄ is computed as any matrix product.

use super::conv::Pass;
use super::product::tile;
use super::simd::{Job, LANES, Lanes};
use super::turn::turn;
use super::unfold::{Run, copy, runs, unfold};
use super::with_sizes;

/// Positions that are unfolded and transposed at once.
const BLOCK: usize = 512;
/// Rows of the unfolded X in one task, about.
const ROWS: usize = 144;

/// Some channels' part of the weight gradient of one group.
pub struct Outer<'a> {
    pub forward: &'a Pass,
    /// Samples.
    pub n: usize,
    /// Planes of the part's first channel in the first sample.
    pub x: *const f32,
    pub channels_of_sample: usize,
    pub channels: usize,
    /// Ȳ turned around ([`Turn`]), from the group's first row on; its rows, and numbers from one position to the next.
    pub dy: *const f32,
    pub rows: usize,
    pub apart: usize,
    /// The first row's weights of the part; rows are `depth` apart.
    pub dw: *mut f32,
    pub depth: usize,
    pub scratch: *mut f32,
}

/// Channels of a task.
pub fn channels_of_task(taps: usize) -> usize {
    (ROWS / taps.max(1)).max(1)
}

/// Numbers between the transposed rows of a task.
fn pitch(width: usize, (_, vectors): (usize, usize)) -> usize {
    width.next_multiple_of(vectors * LANES)
}

/// Numbers of scratch that a task needs.
pub fn held(pass: &Pass, channels: usize, sizes: (usize, usize)) -> usize {
    let width = channels * pass.taps.len();
    BLOCK * (width + pitch(width, sizes)) + sizes.0 * sizes.1 * LANES
}

/// Whether this is the faster way for so many positions, framed by the other or not.
pub fn pays(positions: usize, framed: bool) -> bool {
    positions <= if framed { BLOCK } else { 8 * BLOCK }
}

/// Numbers from one position of Ȳ with `m` rows to the next.
pub fn apart(m: usize) -> usize {
    // Whole vectors, and no power of two.
    m.next_multiple_of(LANES) + LANES
}

/// Up to sixteen rows of Ȳ [N,M,plane] turned around, of some samples: [N·plane, apart].
pub struct Turn {
    pub samples: std::ops::Range<usize>,
    pub m: usize,
    pub plane: usize,
    pub rows: std::ops::Range<usize>,
    pub dy: *const f32,
    pub apart: usize,
    pub out: *mut f32,
}

impl Job for Turn {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        for sample in self.samples.clone() {
            // SAFETY: rows and positions lie within Ȳ; `out` has whole vectors of rows.
            unsafe {
                let from = self.dy.add((sample * self.m + self.rows.start) * self.plane);
                let to = self.out.add(sample * self.plane * self.apart + self.rows.start);
                turn::<L>(from, self.plane, self.rows.len(), self.plane, to, self.apart);
            }
        }
    }
}

impl Job for Outer<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let (pass, taps) = (self.forward, self.forward.taps.len());
        let (width, columns) = (self.channels * taps, self.n * pass.grid[0] * pass.grid[1]);
        let pitch = pitch(width, L::TILE);
        let sample_len = self.channels_of_sample * pass.source[0] * pass.source[1];
        let (mut all, mut list): (Vec<Run>, _) = (Vec::new(), Vec::new());
        let offsets: Vec<usize> = (0..BLOCK.min(columns)).map(|q| q * pitch).collect();
        // SAFETY: scratch holds a block of X unfolded and transposed, and one tile; rows stay within the tensors.
        unsafe {
            let right = self.scratch.add(width * BLOCK);
            let result = right.add(BLOCK * pitch);
            let mut first = 0;
            while first < columns {
                let block = BLOCK.min(columns - first);
                runs(pass.grid, first, first + block, &mut all);
                unfold::<L>(pass, self.x, sample_len, self.channels, self.scratch, BLOCK, (&all, &mut list));
                for r in (0..width).step_by(LANES) {
                    let (from, rows) = (self.scratch.add(r * BLOCK), LANES.min(width - r));
                    turn::<L>(from, BLOCK, rows, block, right.add(r), pitch);
                }
                self.add_block::<L>(&offsets[..block], first, right, result);
                first += block;
            }
        }
    }
}

impl Outer<'_> {
    /// Adds the products of a block of positions from `first` on, the first of which starts the sums.
    #[inline(always)]
    unsafe fn add_block<L: Lanes>(&self, offsets: &[usize], first: usize, right: *const f32, result: *mut f32) {
        let width = self.channels * self.forward.taps.len();
        // SAFETY: as in `run`.
        unsafe {
            let mut at = 0;
            while at < width {
                let vectors = L::TILE.1.min((width - at).div_ceil(LANES));
                let columns_here = (width - at).min(vectors * LANES);
                let direct = first == 0 && columns_here == vectors * LANES;
                let mut row = 0;
                while row < self.rows {
                    let rows = L::TILE.0.min(self.rows - row);
                    let to = self.dw.add(row * self.depth + at);
                    let (base, ld) = if direct { (to, self.depth) } else { (result, L::TILE.1 * LANES) };
                    let b = [0, 1, 2].map(|v| right.add(at + v.min(vectors - 1) * LANES));
                    let c = [0, 1, 2].map(|v| base.add(v.min(vectors - 1) * LANES));
                    let a = self.dy.add(first * self.apart + row);
                    with_sizes!(tile, L, rows, vectors, [1 2 3 4 5 6 7 8][1 2 3], (offsets, a, self.apart, b, std::ptr::null(), c, ld));
                    if !direct {
                        for r in 0..rows {
                            copy::<L>(result.add(r * ld), to.add(r * self.depth), columns_here, first > 0);
                        }
                    }
                    row += rows;
                }
                at += vectors * LANES;
            }
        }
    }
}
