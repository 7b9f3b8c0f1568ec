//! Winograd's minimal filtering F(2×2, 3×3), for 3×3 kernels without stride or dilation.
//!
//! Output is computed in tiles of 2×2. With d the 4×4 input that a tile reads and g a kernel, Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A
//! (Lavin & Gray 2016, eq. 8): 16 products for 4 positions instead of 36. Summed over channels these are 16 matrix products, one for
//! each place in a tile. The input gradient is the same with kernels turned around, and since Y is linear in g, the weight gradient is
//! Gᵀ[Σ (A Ȳ Aᵀ) ⊙ (Bᵀ d B)]G, 16 matrix products over tiles. The transforms add and subtract only (kernels are halved), so
//! rounding errors are about those of the direct sum.

use super::conv::Side;
use super::product::tile;
use super::simd::{Job, LANES, Lanes, Level, run};
use super::unfold::{copy, fill_zero};
use super::{Buffer, Buffers, Pool, Raw, with_sizes};
use std::ops::Range;

thread_local! {
    static SCRATCH: Buffer = Buffer::default();
    static KERNELS: Buffer = Buffer::default();
    static LEFT: Buffer = Buffer::default();
    static RIGHT: Buffer = Buffer::default();
}

/// Places in a tile.
const PLACES: usize = 16;
/// Tiles of a task, at least, if there are as many.
const FEW: usize = 48;
/// Numbers that transformed tiles of a task may take.
const HELD: usize = 3 << 16;
/// Numbers that transformed tiles of all channels may take for the weight gradient, where threads share them and where each has its own.
const CHUNK: usize = 1 << 21;
const SMALL_CHUNK: usize = 1 << 18;
/// Sums of a weight gradient that every part has its own of, and the parts.
const FEW_SUMS: usize = 1 << 19;
const PARTS: usize = 8;

/// What the tiles cover: output (i, j) reads rows i − begin and columns j − begin up to two further.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    /// Samples.
    pub n: usize,
    /// Height and width of a plane that is read.
    pub source: [usize; 2],
    /// Height and width of a plane of outputs.
    pub target: [usize; 2],
    /// Zeros above and to the left; fewer than none leave out rows or columns.
    pub begin: [isize; 2],
}

/// Rows of tiles of one sample, and where they lie among the tiles of a block.
struct Part {
    sample: usize,
    row: usize,
    rows: usize,
    at: usize,
}

impl Grid {
    /// Tiles of a plane.
    fn tiles(&self) -> [usize; 2] {
        self.target.map(|t| t.div_ceil(2))
    }

    /// Rows of tiles of all samples.
    fn rows(&self) -> usize {
        self.n * self.tiles()[0]
    }

    /// Rows of tiles, divided into blocks of about `tiles` tiles.
    fn blocks(&self, rows: Range<usize>, tiles: usize) -> Vec<Range<usize>> {
        let all = rows.len();
        let count = (all * self.tiles()[1]).div_ceil(tiles.max(1));
        // A few blocks are a number that threads can share.
        let count = if count < 16 { count.next_power_of_two() } else { count }.min(all).max(1);
        (0..count).map(|i| rows.start + all * i / count..rows.start + all * (i + 1) / count).collect()
    }

    fn parts(&self, rows: &Range<usize>) -> Vec<Part> {
        let [high, wide] = self.tiles();
        let (mut parts, mut row) = (Vec::new(), rows.start);
        while row < rows.end {
            let count = (high - row % high).min(rows.end - row);
            parts.push(Part { sample: row / high, row: row % high, rows: count, at: (row - rows.start) * wide });
            row += count;
        }
        parts
    }

    /// Numbers that the transforms of a part of `rows` rows of tiles need for themselves.
    fn held(&self, rows: usize) -> usize {
        // Two parities of rows: two streams of twice the tiles and four rows of transformed ones, each with room for a vector behind.
        2 * (2 * 2 + 4) * ((rows + 1) * self.tiles()[1] + 2 * LANES)
    }
}

/// Numbers from the tiles of one channel to those of the next, with room for a vector behind the last.
fn pitch(tiles: usize) -> usize {
    let pitch = (tiles + LANES).next_multiple_of(LANES);
    // Powers of two would share the sets of a cache.
    if pitch.is_multiple_of(4 * LANES) { pitch + LANES } else { pitch }
}

/// Vectors in groups of at most `most`, of about the same size.
fn groups(vectors: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = vectors.div_ceil(most).max(1);
    (0..count).map(move |i| vectors * i / count..vectors * (i + 1) / count)
}

/// `len` columns of a row from column `start` on, zero outside.
#[inline(always)]
unsafe fn framed<L: Lanes>(row: *const f32, width: usize, start: isize, len: usize, to: *mut f32) {
    let before = (-start).clamp(0, len as isize) as usize;
    let from = start.max(0) as usize;
    let count = width.saturating_sub(from).min(len - before);
    // SAFETY: the columns lie within the row, and what is written within `len`.
    unsafe {
        fill_zero::<L>(to, before);
        if count > 0 {
            copy::<L>(row.add(from), to.add(before), count, false);
        }
        fill_zero::<L>(to.add(before + count), len - before - count);
    }
}

/// Bᵀ d B of the tiles of a part of one plane: place p of tile t goes to `out[p·apart + t]`.
///
/// Whole vectors are written: up to fifteen numbers behind the last tile are lost.
#[inline(always)]
unsafe fn input_tiles<L: Lanes>(
    grid: &Grid,
    plane: *const f32,
    part: &Part,
    scratch: *mut f32,
    out: *mut f32,
    apart: usize,
) {
    let ([height, width], wide) = (grid.source, grid.tiles()[1]);
    let rows = part.rows + 1;
    let (stream, line) = (2 * rows * wide + 2 * LANES, rows * wide + LANES);
    // SAFETY: `held` counts both parities' streams and lines; vectors that reach behind them end within the next, which is written later.
    unsafe {
        let lines = scratch.add(4 * stream);
        for parity in 0..2 {
            // Columns 0, 1 of every tile, and columns 2, 3.
            let (left, right) = (scratch.add(2 * parity * stream), scratch.add((2 * parity + 1) * stream));
            for k in 0..rows {
                let y = (2 * (part.row + k) + parity) as isize - grid.begin[0];
                let (left, right) = (left.add(2 * k * wide), right.add(2 * k * wide));
                if (0..height as isize).contains(&y) {
                    let row = plane.add(y as usize * width);
                    framed::<L>(row, width, -grid.begin[1], 2 * wide, left);
                    framed::<L>(row, width, 2 - grid.begin[1], 2 * wide, right);
                } else {
                    fill_zero::<L>(left, 2 * wide);
                    fill_zero::<L>(right, 2 * wide);
                }
            }
            let lines = lines.add(4 * parity * line);
            let mut i = 0;
            while i < rows * wide {
                let (a, b) = (left.add(2 * i), right.add(2 * i));
                let (d0, d1) = L::load(a).unzip(L::load(a.add(LANES)));
                let (d2, d3) = L::load(b).unzip(L::load(b.add(LANES)));
                d0.sub(d2).store(lines.add(i));
                d1.add(d2).store(lines.add(line + i));
                d2.sub(d1).store(lines.add(2 * line + i));
                d1.sub(d3).store(lines.add(3 * line + i));
                i += LANES;
            }
        }
        let mut t = 0;
        while t < part.rows * wide {
            for c in 0..4 {
                let (even, odd) = (lines.add(c * line + t), lines.add((4 + c) * line + t));
                let (r0, r1) = (L::load(even), L::load(odd));
                let (r2, r3) = (L::load(even.add(wide)), L::load(odd.add(wide)));
                let out = out.add(c * apart + t);
                r0.sub(r2).store(out);
                r1.add(r2).store(out.add(4 * apart));
                r2.sub(r1).store(out.add(8 * apart));
                r1.sub(r3).store(out.add(12 * apart));
            }
            t += LANES;
        }
    }
}

/// A Ȳ Aᵀ of the tiles of a part of one plane, written as by [`input_tiles`].
#[inline(always)]
unsafe fn gradient_tiles<L: Lanes>(
    grid: &Grid,
    plane: *const f32,
    part: &Part,
    scratch: *mut f32,
    out: *mut f32,
    apart: usize,
) {
    let ([height, width], wide) = (grid.target, grid.tiles()[1]);
    let stream = 2 * part.rows * wide + 2 * LANES;
    // SAFETY: as for `input_tiles`.
    unsafe {
        for parity in 0..2 {
            for k in 0..part.rows {
                let (y, to) = (2 * (part.row + k) + parity, scratch.add(parity * stream + 2 * k * wide));
                if y < height {
                    framed::<L>(plane.add(y * width), width, 0, 2 * wide, to);
                } else {
                    fill_zero::<L>(to, 2 * wide);
                }
            }
        }
        let mut t = 0;
        while t < part.rows * wide {
            let (even, odd) = (scratch.add(2 * t), scratch.add(stream + 2 * t));
            let (y00, y01) = L::load(even).unzip(L::load(even.add(LANES)));
            let (y10, y11) = L::load(odd).unzip(L::load(odd.add(LANES)));
            let (zero, out) = (L::splat(0.0), out.add(t));
            let rows = [[y00, y01], [y00.add(y10), y01.add(y11)], [y00.sub(y10), y01.sub(y11)], [y10, y11]];
            for (r, [a, b]) in rows.iter().enumerate() {
                let (a, b) = if r == 3 { (zero.sub(*a), zero.sub(*b)) } else { (*a, *b) };
                let out = out.add(4 * r * apart);
                a.store(out);
                a.add(b).store(out.add(apart));
                a.sub(b).store(out.add(2 * apart));
                zero.sub(b).store(out.add(3 * apart));
            }
            t += LANES;
        }
    }
}

/// Aᵀ m A of the tiles of a part of one plane, plus `bias`, into the plane; place p of tile t is `from[p·apart + t]`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn output_tiles<L: Lanes>(
    grid: &Grid,
    from: *const f32,
    apart: usize,
    part: &Part,
    bias: f32,
    add: bool,
    scratch: *mut f32,
    plane: *mut f32,
) {
    let ([height, width], wide) = (grid.target, grid.tiles()[1]);
    let stream = 2 * part.rows * wide + 2 * LANES;
    // SAFETY: as for `input_tiles`.
    unsafe {
        let bias = L::splat(bias);
        let mut t = 0;
        while t < part.rows * wide {
            let mut sums = [[bias; 2]; 4];
            for (c, sum) in sums.iter_mut().enumerate() {
                let from = from.add(c * apart + t);
                let (m0, m1) = (L::load(from), L::load(from.add(4 * apart)));
                let (m2, m3) = (L::load(from.add(8 * apart)), L::load(from.add(12 * apart)));
                *sum = [m0.add(m1).add(m2), m1.sub(m2).sub(m3)];
            }
            let [s0, s1, s2, s3] = sums;
            for a in 0..2 {
                let (y0, y1) = (s0[a].add(s1[a]).add(s2[a]), s1[a].sub(s2[a]).sub(s3[a]));
                let (low, high) = y0.add(bias).zip(y1.add(bias));
                let to = scratch.add(a * stream + 2 * t);
                low.store(to);
                high.store(to.add(LANES));
            }
            t += LANES;
        }
        for k in 0..2 * part.rows {
            let y = 2 * part.row + k;
            if y < height {
                let from = scratch.add(k % 2 * stream + k / 2 * 2 * wide);
                copy::<L>(from, plane.add(y * width), width, add);
            }
        }
    }
}

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
        let offsets: Vec<usize> = (0..channels).map(|c| c * pitch).collect();
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
                        with_sizes!(tile, L, high, vectors, [1 2 3 4 5 6 7 8][1 2 3], (&offsets, a, high, &b, std::ptr::null(), &c, pitch));
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
    KERNELS.with_buffer_of(PLACES * apart, |transformed| {
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

/// The transformed tiles of up to sixteen channels, turned around: place p and channel c of tile t go to `out[p·apart + t·pitch + c]`.
struct Turn<'a> {
    grid: &'a Grid,
    parts: &'a [Part],
    tiles: usize,
    /// Whether this is Ȳ.
    gradient: bool,
    source: *const f32,
    planes: usize,
    channels: usize,
    out: *mut f32,
    apart: usize,
    pitch: usize,
    scratch: *mut f32,
}

impl Job for Turn<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let pitch = pitch(self.tiles);
        let plane = if self.gradient { self.grid.target } else { self.grid.source };
        // SAFETY: scratch holds sixteen channels' tiles and what the transforms need.
        unsafe {
            let scratch = self.scratch.add(PLACES * LANES * pitch);
            for part in self.parts {
                for c in 0..self.channels {
                    let plane = self.source.add((part.sample * self.planes + c) * plane[0] * plane[1]);
                    let out = self.scratch.add(c * pitch + part.at);
                    if self.gradient {
                        gradient_tiles::<L>(self.grid, plane, part, scratch, out, LANES * pitch);
                    } else {
                        input_tiles::<L>(self.grid, plane, part, scratch, out, LANES * pitch);
                    }
                }
            }
            for place in 0..PLACES {
                let mut t = 0;
                while t < self.tiles {
                    let from = self.scratch.add(place * LANES * pitch + t);
                    let mut block = [L::splat(0.0); LANES];
                    for (c, v) in block.iter_mut().enumerate().take(self.channels) {
                        *v = L::load(from.add(c * pitch));
                    }
                    L::transpose(&mut block);
                    let out = self.out.add(place * self.apart + t * self.pitch);
                    for (k, v) in block.iter().enumerate().take(self.tiles - t) {
                        v.store(out.add(k * self.pitch));
                    }
                    t += LANES;
                }
            }
        }
    }
}

/// The sum over tiles at one place of the products of rows of Ȳ and channels of X.
struct Sum {
    tiles: usize,
    rows: Range<usize>,
    channels: usize,
    /// Tiles of Ȳ and X at the place, and numbers from one to the next.
    left: *const f32,
    right: *const f32,
    pitches: [usize; 2],
    /// [rows, pitches[1]]
    sums: *mut f32,
    /// Adds to what is there.
    add: bool,
    scratch: *mut f32,
}

impl Job for Sum {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let [left, right] = self.pitches;
        let offsets: Vec<usize> = (0..self.tiles).map(|t| t * right).collect();
        for columns in groups(self.channels.div_ceil(LANES), L::TILE.1) {
            let mut row = self.rows.start;
            while row < self.rows.end {
                let high = L::TILE.0.min(self.rows.end - row);
                let (first, vectors) = (columns.start * LANES, columns.len());
                // SAFETY: channels are rounded up to vectors on both sides; scratch holds a register tile.
                unsafe {
                    let to = self.sums.add(row * right + first);
                    let (c, ld) = if self.add { (self.scratch, 3 * LANES) } else { (to, right) };
                    let at = [0, 1, 2].map(|v: usize| v.min(vectors - 1) * LANES);
                    let b = self.right.add(first);
                    let b = [b.add(at[0]), b.add(at[1]), b.add(at[2])];
                    let c = [c.add(at[0]), c.add(at[1]), c.add(at[2])];
                    let a = self.left.add(row);
                    with_sizes!(tile, L, high, vectors, [1 2 3 4 5 6 7 8][1 2 3], (&offsets, a, left, &b, std::ptr::null(), &c, ld));
                    if self.add {
                        for r in 0..high {
                            copy::<L>(self.scratch.add(r * ld), to.add(r * right), vectors * LANES, true);
                        }
                    }
                }
                row += high;
            }
        }
    }
}

/// Gᵀ s G of one row of kernels, with s the sum over the parts.
struct Gather {
    channels: usize,
    sums: *const f32,
    apart: usize,
    parts: usize,
    /// Numbers of a part.
    all: usize,
    dw: *mut f32,
}

impl Gather {
    /// The sum of sixteen channels at one place.
    #[inline(always)]
    unsafe fn at<L: Lanes>(&self, place: usize, channel: usize) -> L {
        // SAFETY: sums are whole vectors of channels.
        unsafe {
            let from = self.sums.add(place * self.apart + channel);
            let mut sum = L::load(from);
            for part in 1..self.parts {
                sum = sum.add(L::load(from.add(part * self.all)));
            }
            sum
        }
    }
}

impl Job for Gather {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let mut first = 0;
        while first < self.channels {
            // SAFETY: sums are whole vectors of channels.
            unsafe {
                let half = L::splat(0.5);
                let mut wide = [[half; 3]; 4];
                for (x, sums) in wide.iter_mut().enumerate() {
                    let (s0, s1) = (self.at::<L>(x, first), self.at::<L>(4 + x, first));
                    let (s2, s3) = (self.at::<L>(8 + x, first), self.at::<L>(12 + x, first));
                    let (sum, difference) = (s1.add(s2).mul(half), s1.sub(s2).mul(half));
                    *sums = [s0.add(sum), difference, sum.add(s3)];
                }
                let mut lanes = [[0.0; LANES]; 9];
                let [t0, t1, t2, t3] = wide;
                for y in 0..3 {
                    let (sum, difference) = (t1[y].add(t2[y]).mul(half), t1[y].sub(t2[y]).mul(half));
                    t0[y].add(sum).store(lanes[3 * y].as_mut_ptr());
                    difference.store(lanes[3 * y + 1].as_mut_ptr());
                    sum.add(t3[y]).store(lanes[3 * y + 2].as_mut_ptr());
                }
                for c in 0..LANES.min(self.channels - first) {
                    for (t, lanes) in lanes.iter().enumerate() {
                        *self.dw.add(9 * (first + c) + t) = lanes[c];
                    }
                }
            }
            first += LANES;
        }
    }
}

/// Tiles that are turned around in one task, about.
const TURNED: usize = 256;
/// Rows of Ȳ in one task.
const ROWS: usize = 64;

/// `dw` [M,C/g,3,3] = Σ Ȳ·X over samples and positions.
pub fn weight_gradient(
    grid: &Grid,
    groups: usize,
    x: &Side<*const f32>,
    dy: &Side<*const f32>,
    dw: &mut [f32],
    level: Level,
    pool: &dyn Pool,
) {
    let (m, c) = (dy.channels / groups, x.channels / groups);
    // Channels are whole vectors, and not powers of two.
    let pitches = [m, c].map(|k| k.next_multiple_of(LANES) + LANES);
    let (apart, all) = (m * pitches[1], PLACES * m * pitches[1]);
    // Few sums stay in a cache, and so does what each part of the samples adds to its own; many are one part's that all threads work on.
    let parts = if all <= FEW_SUMS { PARTS.min(grid.rows()) } else { 1 };
    let products = Products { grid, channels: [m, c], sides: [dy, x], pitches, apart, level };
    KERNELS.with_buffer_of(parts * all, |sums| {
        let sums = Raw(sums);
        for (group, dw) in dw.chunks_exact_mut(9 * m * c).enumerate() {
            if parts == 1 {
                products.add(group, 0..grid.rows(), CHUNK, sums, pool);
            } else {
                pool.run(parts, &|i| {
                    let rows = grid.rows() * i / parts..grid.rows() * (i + 1) / parts;
                    // SAFETY: every part has sums of its own.
                    let sums = Raw(unsafe { sums.get().add(i * all) });
                    products.add(group, rows, SMALL_CHUNK, sums, &Alone);
                });
            }
            let dw = Raw(dw.as_mut_ptr());
            pool.run(m, &|i| {
                // SAFETY: the level is one this processor has; every task has a row of kernels of its own.
                unsafe {
                    let sums = sums.get().add(i * pitches[1]);
                    let dw = dw.get().add(9 * i * c);
                    run(level, &Gather { channels: c, sums, apart, parts, all, dw });
                }
            });
        }
    });
}

/// What runs tasks on the thread that asks.
struct Alone;

impl Pool for Alone {
    fn run(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..n).for_each(task);
    }
}

/// The matrix products that sum up a weight gradient: Ȳ on the left, X on the right.
struct Products<'a> {
    grid: &'a Grid,
    /// Of a group.
    channels: [usize; 2],
    sides: [&'a Side<*const f32>; 2],
    /// Numbers from one tile to the next on either side; the right one's is that of the sums' rows, too.
    pitches: [usize; 2],
    /// Numbers of the sums at one place.
    apart: usize,
    level: Level,
}

impl Products<'_> {
    /// The sums over some rows of tiles, of which `chunk` numbers are held at once.
    fn add(&self, group: usize, rows: Range<usize>, chunk: usize, sums: Raw<*mut f32>, pool: &dyn Pool) {
        let Self { grid, channels: [m, c], pitches, .. } = *self;
        let wide = grid.tiles()[1];
        let most = (chunk / (PLACES * (pitches[0] + pitches[1]) * wide)).max(1).min(rows.len());
        let apart = pitches.map(|p| p * most * wide);
        LEFT.with_buffer_of(PLACES * apart[0], |left| {
            RIGHT.with_buffer_of(PLACES * apart[1], |right| {
                let turned = [Raw(left), Raw(right)];
                for first in rows.clone().step_by(most) {
                    let chunk = first..(first + most).min(rows.end);
                    self.turn_around(group, &chunk, turned, apart, pool);
                    let slices = m.div_ceil(ROWS);
                    pool.run(PLACES * slices, &|task| {
                        let (place, slice) = (task / slices, task % slices);
                        SCRATCH.with_buffer_of(8 * 3 * LANES, |scratch| {
                            // SAFETY: the level is one this processor has; every task has rows of sums of its own.
                            unsafe {
                                let job = Sum {
                                    tiles: chunk.len() * wide,
                                    rows: slice * ROWS..((slice + 1) * ROWS).min(m),
                                    channels: c,
                                    left: turned[0].get().add(place * apart[0]),
                                    right: turned[1].get().add(place * apart[1]),
                                    pitches,
                                    sums: sums.get().add(place * self.apart),
                                    add: first > rows.start,
                                    scratch,
                                };
                                run(self.level, &job);
                            }
                        });
                    });
                }
            });
        });
    }

    /// Both sides' tiles of some rows of tiles, as [`Turn`] writes them.
    fn turn_around(
        &self,
        group: usize,
        rows: &Range<usize>,
        out: [Raw<*mut f32>; 2],
        apart: [usize; 2],
        pool: &dyn Pool,
    ) {
        let Self { grid, channels, sides, pitches, level, .. } = *self;
        let (blocks, wide) = (grid.blocks(rows.clone(), TURNED), grid.tiles()[1]);
        let vectors = channels.map(|k| k.div_ceil(LANES));
        pool.run((vectors[0] + vectors[1]) * blocks.len(), &|task| {
            let (vector, block) = (task / blocks.len(), &blocks[task % blocks.len()]);
            let side = usize::from(vector >= vectors[0]);
            let first = (vector - side * vectors[0]) * LANES;
            let plane = [grid.target, grid.source][side].iter().product::<usize>();
            let (parts, tiles) = (grid.parts(block), block.len() * wide);
            SCRATCH.with_buffer_of(PLACES * LANES * pitch(tiles) + grid.held(block.len()), |scratch| {
                // SAFETY: the level is one this processor has; every task has tiles and channels of its own.
                unsafe {
                    let job = Turn {
                        grid,
                        parts: &parts,
                        tiles,
                        gradient: side == 0,
                        source: sides[side].data.get().add((group * channels[side] + first) * plane),
                        planes: sides[side].channels,
                        channels: LANES.min(channels[side] - first),
                        out: out[side].get().add((block.start - rows.start) * wide * pitches[side] + first),
                        apart: apart[side],
                        pitch: pitches[side],
                        scratch,
                    };
                    run(level, &job);
                }
            });
        });
    }
}
