//! What the positions of a convolution read: unfolded into panels, or framed by zeros.

use super::conv::{Pass, Tap};
use super::simd::{LANES, Lanes};

/// Consecutive columns whose positions lie in one row of the grid of one sample.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub column: usize,
    pub len: usize,
    pub sample: usize,
    pub at: [usize; 2],
}

/// The runs of columns `from..to`, which count the positions of sample after sample.
pub fn runs(grid: [usize; 2], from: usize, to: usize, out: &mut Vec<Run>) {
    out.clear();
    let (plane, mut q) = (grid[0] * grid[1], from);
    while q < to {
        let (sample, rest) = (q / plane, q % plane);
        let at = [rest / grid[1], rest % grid[1]];
        let len = (grid[1] - at[1]).min(to - q);
        out.push(Run { column: q - from, len, sample, at });
        q += len;
    }
}

/// What one kernel element reads for one run: zeros, then `count` elements `step` apart, then zeros.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    column: usize,
    before: usize,
    count: usize,
    after: usize,
    source: usize,
}

fn pieces(pass: &Pass, tap: Tap, runs: &[Run], sample_len: usize, out: &mut Vec<Piece>) {
    out.clear();
    let [height, width] = pass.source.map(|s| s as isize);
    for r in runs {
        let y = (r.at[0] * pass.step[0]) as isize + tap.offset[0];
        let x = (r.at[1] * pass.step[1]) as isize + tap.offset[1];
        let step = pass.step[1] as isize;
        let (mut low, mut high) = (0, 0);
        if (0..height).contains(&y) {
            // x + i·step in 0..width
            low = if x < 0 { (-x + step - 1) / step } else { 0 }.min(r.len as isize);
            high = if x < width { (width - x + step - 1) / step } else { 0 }.clamp(low, r.len as isize);
        }
        let (before, count) = (low as usize, (high - low) as usize);
        let source = if count > 0 { r.sample * sample_len + (y * width + x + low * step) as usize } else { 0 };
        out.push(Piece { column: r.column, before, count, after: r.len - before - count, source });
    }
}

#[inline(always)]
pub unsafe fn fill_zero<L: Lanes>(mut p: *mut f32, mut n: usize) {
    unsafe {
        let zero = L::splat(0.0);
        while n >= LANES {
            zero.store(p);
            (p, n) = (p.add(LANES), n - LANES);
        }
        if n > 0 {
            zero.store_first(p, n);
        }
    }
}

/// Copies `n` numbers, adding them to what is there if `add`.
#[inline(always)]
pub unsafe fn copy<L: Lanes>(mut from: *const f32, mut to: *mut f32, mut n: usize, add: bool) {
    unsafe {
        while n >= LANES {
            let v = L::load(from);
            if add { v.add(L::load(to)) } else { v }.store(to);
            (from, to, n) = (from.add(LANES), to.add(LANES), n - LANES);
        }
        if n > 0 {
            let v = L::load_first(from, n);
            if add { v.add(L::load_first(to, n)) } else { v }.store_first(to, n);
        }
    }
}

/// Copies `n` numbers that are `step` apart.
#[inline(always)]
pub unsafe fn gather<L: Lanes>(mut from: *const f32, step: usize, mut to: *mut f32, mut n: usize) {
    unsafe {
        if step == 1 {
            return copy::<L>(from, to, n, false);
        }
        while step == 2 && n >= LANES {
            // The number behind the last one may not be there.
            let second = from.add(LANES);
            let second = if n > LANES { L::load(second) } else { L::load_first(second, LANES - 1) };
            L::load(from).unzip(second).0.store(to);
            (from, to, n) = (from.add(2 * LANES), to.add(LANES), n - LANES);
        }
        for i in 0..n {
            *to.add(i) = *from.add(i * step);
        }
    }
}

/// Unfolds `channels` planes into rows of `pitch` columns, all kernel elements of one channel after the other.
#[inline(always)]
pub unsafe fn unfold<L: Lanes>(
    pass: &Pass,
    source: *const f32,
    sample_len: usize,
    channels: usize,
    panel: *mut f32,
    pitch: usize,
    (runs, list): (&[Run], &mut Vec<Piece>),
) {
    let (plane, taps, step) = (pass.source[0] * pass.source[1], pass.taps.len(), pass.step[1]);
    for (t, tap) in pass.taps.iter().enumerate() {
        pieces(pass, *tap, runs, sample_len, list);
        for c in 0..channels {
            // SAFETY: pieces lie within the planes and the row.
            unsafe {
                let row = panel.add((c * taps + t) * pitch);
                let plane = source.add(c * plane);
                for p in list.iter() {
                    let to = row.add(p.column);
                    if p.before > 0 {
                        fill_zero::<L>(to, p.before);
                    }
                    let (from, to) = (plane.add(p.source), to.add(p.before));
                    gather::<L>(from, step, to, p.count);
                    if p.after > 0 {
                        fill_zero::<L>(to.add(p.count), p.after);
                    }
                }
            }
        }
    }
}

/// How source planes are copied with zeros around them, so that every kernel element is a place relative to the position.
///
/// This saves the unfolding where positions are next to each other in the source and fill vectors well.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Where the first row and column of the frame lie in the source, for the first position.
    pub origin: [isize; 2],
    /// Rows above and below that positions read beside their own.
    pub rows: usize,
    /// Length of a row.
    pub width: usize,
    /// Vectors of one row of positions.
    pub vectors: usize,
}

impl Frame {
    pub fn new(pass: &Pass) -> Option<Self> {
        let vectors = pass.grid[1].div_ceil(LANES);
        // A seventh of the lanes may be idle.
        if pass.step != [1, 1] || vectors * LANES * 7 > pass.grid[1] * 8 {
            return None;
        }
        let bounds = |axis: usize| {
            let offsets = pass.taps.iter().map(|t| t.offset[axis]);
            Some((offsets.clone().min()?, offsets.max()?))
        };
        let (y, x) = (bounds(0)?, bounds(1)?);
        let width = vectors * LANES + (x.1 - x.0) as usize;
        Some(Self { origin: [y.0, x.0], rows: (y.1 - y.0) as usize, width, vectors })
    }

    /// Where in the frame a kernel element of the first position lies.
    pub fn place(&self, tap: &Tap) -> usize {
        let [y, x] = [0, 1].map(|i| (tap.offset[i] - self.origin[i]) as usize);
        y * self.width + x
    }

    /// Numbers of one channel for `rows` rows of positions.
    pub fn len(&self, rows: usize) -> usize {
        (rows + self.rows) * self.width
    }

    /// Copies what `rows` rows of positions from `first` on read.
    #[inline(always)]
    pub unsafe fn copy<L: Lanes>(&self, pass: &Pass, plane: *const f32, first: usize, rows: usize, mut to: *mut f32) {
        let [height, width] = pass.source;
        let left = ((-self.origin[1]).max(0) as usize).min(self.width);
        let skip = self.origin[1].max(0) as usize;
        let count = width.saturating_sub(skip).min(self.width - left);
        for r in 0..rows + self.rows {
            let y = (first + r) as isize + self.origin[0];
            // SAFETY: rows and columns lie within the plane and the frame.
            unsafe {
                if y < 0 || y >= height as isize {
                    fill_zero::<L>(to, self.width);
                } else {
                    fill_zero::<L>(to, left);
                    copy::<L>(plane.add(y as usize * width + skip), to.add(left), count, false);
                    fill_zero::<L>(to.add(left + count), self.width - left - count);
                }
                to = to.add(self.width);
            }
        }
    }
}
