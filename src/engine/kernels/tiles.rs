//! The tiles of Winograd's filtering and their transforms.

use super::simd::{LANES, Lanes};
use super::turn::{copy, fill_zero};
use std::ops::Range;

/// Places in a tile.
pub const PLACES: usize = 16;

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
pub struct Part {
    pub sample: usize,
    pub row: usize,
    pub rows: usize,
    pub at: usize,
}

impl Grid {
    /// Tiles of a plane.
    pub fn tiles(&self) -> [usize; 2] {
        self.target.map(|t| t.div_ceil(2))
    }

    /// Rows of tiles of all samples.
    pub fn rows(&self) -> usize {
        self.n * self.tiles()[0]
    }

    /// Rows of tiles, divided into blocks of about `tiles` tiles.
    pub fn blocks(&self, rows: Range<usize>, tiles: usize) -> Vec<Range<usize>> {
        let all = rows.len();
        let count = (all * self.tiles()[1]).div_ceil(tiles.max(1));
        // A few blocks are a number that threads can share.
        let count = if count < 16 { count.next_power_of_two() } else { count }.min(all).max(1);
        (0..count).map(|i| rows.start + all * i / count..rows.start + all * (i + 1) / count).collect()
    }

    pub fn parts(&self, rows: &Range<usize>) -> Vec<Part> {
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
    pub fn held(&self, rows: usize) -> usize {
        // Two parities of rows: two streams of twice the tiles and four rows of transformed ones, each with room for a vector behind.
        2 * (2 * 2 + 4) * ((rows + 1) * self.tiles()[1] + 2 * LANES)
    }
}

/// Numbers from the tiles of one channel to those of the next, with room for a vector behind the last.
pub fn pitch(tiles: usize) -> usize {
    let pitch = (tiles + LANES).next_multiple_of(LANES);
    // Powers of two would share the sets of a cache.
    if pitch.is_multiple_of(4 * LANES) { pitch + LANES } else { pitch }
}

/// Vectors in groups of at most `most`, of about the same size.
pub fn groups(vectors: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
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
pub unsafe fn input_tiles<L: Lanes>(
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
pub unsafe fn gradient_tiles<L: Lanes>(
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
pub unsafe fn output_tiles<L: Lanes>(
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
