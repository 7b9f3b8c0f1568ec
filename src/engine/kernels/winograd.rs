//! Winograd's minimal filtering F(2×2, 3×3), for 3×3 kernels without stride or dilation.
//!
//! Output is computed in tiles of 2×2. With d the 4×4 input that a tile reads and g a kernel, Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A
//! (Lavin & Gray 2016, eq. 8): 16 products for 4 positions instead of 36. Summed over channels these are 16 matrix products, one for
//! each place in a tile. The input gradient is the same with kernels turned around, and since Y is linear in g, the weight gradient is
//! Gᵀ[Σ (A Ȳ Aᵀ) ⊙ (Bᵀ d B)]G, 16 matrix products over tiles. The transforms add and subtract only (kernels are halved), so
//! rounding errors are about those of the direct sum. [`super::tiles`] has the transforms, [`super::winograd_sums`] the weight gradient.

use super::conv::Side;
use super::simd::{Job, LANES, Lanes, Level, run};
use super::tile::tile;
use super::tiles::{Grid, PLACES, Part, groups, input_tiles, output_tiles, pitch};
use super::{Buffers, Pool, Raw, SCRATCH, WEIGHTS, with_sizes};
use std::ops::Range;

/// Tiles of a task, at least, if there are as many.
const FEW: usize = 48;
/// Numbers that transformed tiles of a task may take.
const HELD: usize = 3 << 16;

/// Weights [M,C,3,3] as kernels from some channels to others: `rows` of them that each read `channels`.
#[derive(Debug, Clone, Copy)]
pub struct Kernels {
    /// Channels that are written.
    pub rows: usize,
    /// Channels that are read.
    pub channels: usize,
    /// Numbers from the kernel of one row to that of the next, and from one channel to the next.
    pub apart: [usize; 2],
    /// Whether kernels are turned around, as the input gradient needs them.
    pub turned: bool,
}

/// G g Gᵀ of a block of rows: place p of channel c and row r goes to `out[p·apart + c·rows + r]`.
struct Transform {
    kernels: Kernels,
    rows: Range<usize>,
    weight: *const f32,
    out: *mut f32,
    apart: usize,
}

impl Job for Transform {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let Kernels { channels, apart: [row, channel], turned, .. } = self.kernels;
        let rows = self.rows.len();
        for c in 0..channels {
            // SAFETY: within the weights, and the block of `out`.
            unsafe {
                let mut g = [[0.0; LANES]; 9];
                for r in 0..rows {
                    let kernel = self.weight.add((self.rows.start + r) * row + c * channel);
                    for (t, g) in g.iter_mut().enumerate() {
                        g[r] = *kernel.add(if turned { 8 - t } else { t });
                    }
                }
                let half = L::splat(0.5);
                let mut tall = [[half; 3]; 4];
                for x in 0..3 {
                    let (a, b) = (L::load(g[x].as_ptr()), L::load(g[3 + x].as_ptr()));
                    let d = L::load(g[6 + x].as_ptr());
                    let (outer, middle) = (a.add(d).mul(half), b.mul(half));
                    (tall[0][x], tall[3][x]) = (a, d);
                    (tall[1][x], tall[2][x]) = (outer.add(middle), outer.sub(middle));
                }
                for (y, [a, b, d]) in tall.iter().enumerate() {
                    let (outer, middle) = (a.add(*d).mul(half), b.mul(half));
                    for (x, v) in [*a, outer.add(middle), outer.sub(middle), *d].iter().enumerate() {
                        v.store_first(self.out.add((4 * y + x) * self.apart + c * rows), rows);
                    }
                }
            }
        }
    }
}

/// One block of tiles, all channels to all rows.
struct Forward<'a> {
    grid: &'a Grid,
    kernels: Kernels,
    parts: &'a [Part],
    tiles: usize,
    source: *const f32,
    target: *mut f32,
    /// Planes of a sample on either side, of all groups.
    planes: [usize; 2],
    /// As [`Transform`] writes them, block after block.
    transformed: *const f32,
    bias: *const f32,
    add: bool,
    scratch: *mut f32,
}

impl Job for Forward<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let Kernels { rows, channels, .. } = self.kernels;
        let pitch = pitch(self.tiles);
        let [source, target] = [self.grid.source, self.grid.target].map(|p| p[0] * p[1]);
        let offsets: Vec<usize> = (0..channels).map(|c| c * pitch / LANES).collect();
        // SAFETY: scratch holds the tiles of channels and rows, and what the transforms need.
        unsafe {
            let (read, written) = (self.scratch, self.scratch.add(PLACES * channels * pitch));
            let scratch = written.add(PLACES * rows * pitch);
            for part in self.parts {
                for c in 0..channels {
                    let plane = self.source.add((part.sample * self.planes[0] + c) * source);
                    let out = read.add(c * pitch + part.at);
                    input_tiles::<L>(self.grid, plane, part, scratch, out, channels * pitch);
                }
            }
            for place in 0..PLACES {
                let (b, c) = (read.add(place * channels * pitch), written.add(place * rows * pitch));
                for columns in groups(self.tiles.div_ceil(LANES), L::TILE.1) {
                    let vectors = columns.len();
                    let at = [0, 1, 2].map(|v| (columns.start + v.min(vectors - 1)) * LANES);
                    let b = [b.add(at[0]).cast_const(), b.add(at[1]).cast_const(), b.add(at[2]).cast_const()];
                    let mut row = 0;
                    while row < rows {
                        let high = L::TILE.0.min(rows - row);
                        let a = self.transformed.add((place * rows + row) * channels);
                        let c = c.add(row * pitch);
                        let c = [c.add(at[0]), c.add(at[1]), c.add(at[2])];
                        with_sizes!(tile, L, high, vectors, [1 2 3 4 5 6 7 8][1 2 3], (&offsets, a, high, b, c, pitch));
                        row += high;
                    }
                }
            }
            for part in self.parts {
                for r in 0..rows {
                    let bias = if self.bias.is_null() { 0.0 } else { *self.bias.add(r) };
                    let plane = self.target.add((part.sample * self.planes[1] + r) * target);
                    let from = written.add(r * pitch + part.at);
                    output_tiles::<L>(self.grid, from, rows * pitch, part, bias, self.add, scratch, plane);
                }
            }
        }
    }
}

/// target = kernels ∗ source + bias, added to what is there if `add`, group by group.
///
/// `kernels` describes the first group; those of the others follow.
#[allow(clippy::too_many_arguments)]
pub fn convolve(
    grid: &Grid,
    kernels: Kernels,
    groups: usize,
    source: &Side<*const f32>,
    target: &Side<*mut f32>,
    weight: &[f32],
    bias: Option<&[f32]>,
    add: bool,
    level: Level,
    pool: &dyn Pool,
) {
    let Kernels { rows, channels, .. } = kernels;
    let (high, apart) = (level.tile().0, rows * channels);
    let [source_plane, target_plane] = [grid.source, grid.target].map(|p| p[0] * p[1]);
    let tiles = (HELD / (PLACES * (rows + channels))).max(FEW);
    let blocks = grid.blocks(0..grid.rows(), tiles);
    let (weight, bias) = (Raw(weight.as_ptr()), Raw(bias.map_or(std::ptr::null(), <[f32]>::as_ptr)));
    WEIGHTS.with_buffer_of(PLACES * apart, |transformed| {
        let transformed = Raw(transformed);
        for group in 0..groups {
            pool.run(rows.div_ceil(high), &|i| {
                let block = i * high..((i + 1) * high).min(rows);
                // SAFETY: the level is one this processor has, and every task has a block of its own.
                unsafe {
                    let weight = weight.get().add(9 * group * apart);
                    let out = transformed.get().add(block.start * channels);
                    run(level, &Transform { kernels, rows: block, weight, out, apart });
                }
            });
            pool.run(blocks.len(), &|i| {
                let parts = grid.parts(&blocks[i]);
                let tiles = blocks[i].len() * grid.tiles()[1];
                let numbers = PLACES * (rows + channels) * pitch(tiles) + grid.held(blocks[i].len());
                let bias = bias.get();
                SCRATCH.with_buffer_of(numbers, |scratch| {
                    // SAFETY: as above; every block has positions of its own.
                    unsafe {
                        let job = Forward {
                            grid,
                            kernels,
                            parts: &parts,
                            tiles,
                            source: source.data.get().add(group * channels * source_plane),
                            target: target.data.get().add(group * rows * target_plane),
                            planes: [source.channels, target.channels],
                            transformed: transformed.get(),
                            bias: if bias.is_null() { bias } else { bias.add(group * rows) },
                            add,
                            scratch,
                        };
                        run(level, &job);
                    }
                });
            });
        }
    });
}
