//! Convolution of images, and its gradients, as matrix products whose right side is unfolded a panel at a time.
//!
//! The output of a convolution is W [M, C·K₁·K₂] times a matrix with one row for every input channel and kernel element and one
//! column for every output position. Columns are unfolded into panels that stay in the cache (im2col, Chellapilla et al. 2006), a
//! few columns at a time as in the packing of a matrix product (Goto & van de Geijn 2008); stride, dilation, padding and groups
//! exist only there. The input gradient is the same product with the weights transposed, one for each residue of the input
//! position modulo the stride. The weight gradient is the product of Ȳ with the transposed panel, and since both have positions
//! as their contiguous dimension it is a matrix of dot products. Everything is f32 in NCHW; nothing is transposed but the weights.
//!
//! How the work is divided depends on the shapes alone, so results do not depend on the number of threads.

use super::simd::{Job, LANES, Lanes, Level, run};
use super::{Buffer, Buffers, Pool, Raw};
use crate::error::{Error, Result};

/// X [N,C,H,W] ∗ W [M,C/g,K₁,K₂] → Y [N,M,O₁,O₂]: output (i, j) reads input i·stride − begin + t·dilation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Samples.
    pub n: usize,
    /// Channels of X.
    pub c: usize,
    /// Channels of Y.
    pub m: usize,
    /// Groups; they divide C and M.
    pub groups: usize,
    /// Height and width of X.
    pub input: [usize; 2],
    /// Height and width of Y.
    pub output: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Strides.
    pub strides: [usize; 2],
    /// Dilations.
    pub dilations: [usize; 2],
    /// Zeros above and to the left of X.
    pub begin: [usize; 2],
}

impl Geometry {
    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Whether these are the numbers of elements of X, W and Y; the kernels read and write without looking again.
    fn check(&self, x: usize, weight: usize, y: usize) -> Result<()> {
        let plane = |p: [usize; 2]| p[0] * p[1];
        let divided = self.groups > 0 && self.c.is_multiple_of(self.groups) && self.m.is_multiple_of(self.groups);
        let steps = self.strides.iter().chain(&self.dilations).all(|s| *s > 0);
        let lengths = [self.n * self.c * plane(self.input), self.n * self.m * plane(self.output)] == [x, y];
        if divided && steps && lengths && weight * self.groups == self.m * self.c * self.taps() {
            return Ok(());
        }
        Err(Error::new(format!("X, W and Y of {x}, {weight} and {y} elements do not fit {self:?}")))
    }
}

thread_local! {
    static SCRATCH: Buffer = Buffer::default();
    static WEIGHTS: Buffer = Buffer::default();
    static SUMS: Buffer = Buffer::default();
}

/// A kernel element that a pass reads: its place relative to the first element of a position, and its index in the kernel.
#[derive(Debug, Clone, Copy)]
struct Tap {
    offset: [isize; 2],
    index: usize,
}

/// A grid of positions, what each reads from the source planes, and where it lies in the destination planes.
#[derive(Debug, Clone)]
struct Pass {
    grid: [usize; 2],
    /// Size of a source plane.
    source: [usize; 2],
    /// Step in the source from one grid element to the next.
    step: [usize; 2],
    taps: Vec<Tap>,
    /// Size of a destination plane.
    target: [usize; 2],
    /// The first grid element in the destination, and the step to the next.
    first: [usize; 2],
    spread: [usize; 2],
}

fn forward_pass(g: &Geometry) -> Pass {
    let offset = |axis: usize, t: usize| (t * g.dilations[axis]) as isize - g.begin[axis] as isize;
    let tap = |i: usize| {
        let (y, x) = (i / g.kernel[1], i % g.kernel[1]);
        Tap { offset: [offset(0, y), offset(1, x)], index: i }
    };
    Pass {
        grid: g.output,
        source: g.input,
        step: g.strides,
        taps: (0..g.taps()).map(tap).collect(),
        target: g.output,
        first: [0, 0],
        spread: [1, 1],
    }
}

/// Input places of one residue modulo the stride read the same kernel elements, at fixed distances in Ȳ.
fn gradient_passes(g: &Geometry) -> Vec<Pass> {
    let reads = |axis: usize, residue: usize| -> Vec<(usize, isize)> {
        let stride = g.strides[axis] as isize;
        let place = |t: usize| residue as isize + g.begin[axis] as isize - (t * g.dilations[axis]) as isize;
        (0..g.kernel[axis]).filter(|t| place(*t) % stride == 0).map(|t| (t, place(t) / stride)).collect()
    };
    let mut passes = Vec::new();
    for py in 0..g.strides[0].min(g.input[0]) {
        for px in 0..g.strides[1].min(g.input[1]) {
            let columns = reads(1, px);
            let row = |(t, y): (usize, isize)| {
                columns.iter().map(move |(u, x)| Tap { offset: [y, *x], index: t * g.kernel[1] + u })
            };
            passes.push(Pass {
                grid: [(g.input[0] - py).div_ceil(g.strides[0]), (g.input[1] - px).div_ceil(g.strides[1])],
                source: g.output,
                step: [1, 1],
                taps: reads(0, py).into_iter().flat_map(row).collect(),
                target: g.input,
                first: [py, px],
                spread: g.strides,
            });
        }
    }
    passes
}

/// Consecutive columns whose positions lie in one row of the grid of one sample.
#[derive(Debug, Clone, Copy)]
struct Run {
    column: usize,
    len: usize,
    sample: usize,
    at: [usize; 2],
}

/// The runs of columns `from..to`, which count the positions of sample after sample.
fn runs(grid: [usize; 2], from: usize, to: usize, out: &mut Vec<Run>) {
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
struct Piece {
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
unsafe fn fill_zero<L: Lanes>(mut p: *mut f32, mut n: usize) {
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
unsafe fn copy<L: Lanes>(mut from: *const f32, mut to: *mut f32, mut n: usize, add: bool) {
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

/// Unfolds `channels` planes into rows of `pitch` columns, all kernel elements of one channel after the other.
#[inline(always)]
unsafe fn unfold<L: Lanes>(
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
                    if step == 1 {
                        copy::<L>(from, to, p.count, false);
                    } else {
                        for i in 0..p.count {
                            *to.add(i) = *from.add(i * step);
                        }
                    }
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
struct Frame {
    /// Where the first row and column of the frame lie in the source, for the first position.
    origin: [isize; 2],
    /// Rows above and below that positions read beside their own.
    rows: usize,
    /// Length of a row.
    width: usize,
    /// Vectors of one row of positions.
    vectors: usize,
}

impl Frame {
    fn new(pass: &Pass) -> Option<Self> {
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
    fn place(&self, tap: &Tap) -> usize {
        let [y, x] = [0, 1].map(|i| (tap.offset[i] - self.origin[i]) as usize);
        y * self.width + x
    }

    /// Numbers of one channel for `rows` rows of positions.
    fn len(&self, rows: usize) -> usize {
        (rows + self.rows) * self.width
    }

    /// Copies what `rows` rows of positions from `first` on read.
    #[inline(always)]
    unsafe fn copy<L: Lanes>(&self, pass: &Pass, plane: *const f32, first: usize, rows: usize, mut to: *mut f32) {
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

/// R rows and V vectors of a product: c = init + a·b with a as [depth, R] and row i of b at `offsets[i]` from each of `b`.
#[inline(always)]
unsafe fn tile<L: Lanes, const R: usize, const V: usize>(
    offsets: &[usize],
    mut a: *const f32,
    b: &[*const f32; 3],
    init: *const f32,
    c: &[*mut f32; 3],
    ld: usize,
) {
    unsafe {
        let mut sums = [[L::splat(0.0); V]; R];
        if !init.is_null() {
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = [L::splat(*init.add(r)); V];
            }
        }
        for offset in offsets {
            let mut column = [L::splat(0.0); V];
            for (v, x) in column.iter_mut().enumerate() {
                *x = L::load(b[v].add(*offset));
            }
            for (r, sum) in sums.iter_mut().enumerate() {
                let w = L::splat(*a.add(r));
                for (s, x) in sum.iter_mut().zip(column) {
                    *s = w.mul_add(x, *s);
                }
            }
            a = a.add(R);
        }
        for (r, sum) in sums.iter().enumerate() {
            for (v, s) in sum.iter().enumerate() {
                s.store(c[v].add(r * ld));
            }
        }
    }
}

/// A part of the columns of a matrix of dot products: `left` and `right` numbers into the rows of either side.
#[derive(Debug, Clone, Copy)]
struct Strip {
    left: usize,
    right: usize,
}

/// R rows of dot products with V columns: c [R, ld] += a·bᵀ over strips of `vectors` vectors, with rows of a `pitch` apart.
#[inline(always)]
unsafe fn dots<L: Lanes, const R: usize, const V: usize>(
    strips: &[Strip],
    vectors: usize,
    a: *const f32,
    pitch: usize,
    b: &[*const f32; 6],
    c: *mut f32,
    ld: usize,
) {
    unsafe {
        let mut sums = [[L::splat(0.0); V]; R];
        for strip in strips {
            let a = a.add(strip.left);
            let mut right = [std::ptr::null(); V];
            for (v, p) in right.iter_mut().enumerate() {
                *p = b[v].add(strip.right);
            }
            for i in 0..vectors {
                let at = i * LANES;
                let mut column = [L::splat(0.0); V];
                for (v, x) in column.iter_mut().enumerate() {
                    *x = L::load(right[v].add(at));
                }
                for (r, sum) in sums.iter_mut().enumerate() {
                    let y = L::load(a.add(r * pitch + at));
                    for (s, x) in sum.iter_mut().zip(column) {
                        *s = y.mul_add(x, *s);
                    }
                }
            }
        }
        for (r, sum) in sums.iter().enumerate() {
            for (v, s) in sum.iter().enumerate() {
                *c.add(r * ld + v) += s.sum();
            }
        }
    }
}

/// Calls a function with run-time sizes as its const parameters.
macro_rules! with_sizes {
    ($f:ident, $l:ty, $rows:expr, $vectors:expr, [$($r:literal)*] $v:tt, $args:tt) => {
        match $rows { $($r => with_sizes!(@ $f, $l, $r, $vectors, $v, $args),)* _ => unreachable!("larger than a tile") }
    };
    (@ $f:ident, $l:ty, $r:literal, $vectors:expr, [$($v:literal)*], $args:tt) => {
        match $vectors { $($v => with_sizes!(% $f, $l, $r, $v, $args),)* _ => unreachable!("larger than a tile") }
    };
    (% $f:ident, $l:ty, $r:literal, $v:literal, ($($arg:expr),*)) => { $f::<$l, $r, $v>($($arg),*) };
}

/// Rows of the unfolded matrix that are summed at once.
const DEPTH: usize = 1024;
/// Panels that share one reading of the weights.
const PANELS: usize = 2;
/// Numbers of a framed part of the source, at most (unless one row of positions needs more).
const FRAMED: usize = 8192;

/// One pass over a part of its columns, for one group.
struct Product<'a> {
    pass: &'a Pass,
    frame: Option<Frame>,
    /// Source and destination planes of the group's first channel in the first sample.
    source: *const f32,
    target: *mut f32,
    /// Channels a sample has in the source and the destination, of all groups.
    channels_of_sample: [usize; 2],
    /// Source channels and destination rows of the group.
    channels: usize,
    rows: usize,
    /// Weights of the group, in blocks of TILE.0 rows, each [channels·taps, rows of the block].
    weights: *const f32,
    /// One for each row, or null.
    bias: *const f32,
    /// Adds to the destination.
    add: bool,
    columns: std::ops::Range<usize>,
    scratch: *mut f32,
}

/// Source channels that are summed at once.
fn channels_at_once(channels: usize, taps: usize) -> usize {
    let most = (DEPTH / taps.max(1)).max(1);
    channels.div_ceil(channels.div_ceil(most)).max(1)
}

/// Rows of positions that are framed at once.
fn framed_rows(frame: &Frame, pass: &Pass, channels: usize) -> usize {
    let rows = (FRAMED / (channels * frame.width)).saturating_sub(frame.rows);
    rows.clamp(4, 16).min(pass.grid[0])
}

/// Numbers of source that [`Product`] holds: framed planes or panels.
fn held(pass: &Pass, frame: Option<&Frame>, channels: usize, (_, vectors): (usize, usize)) -> usize {
    let channels = channels_at_once(channels, pass.taps.len());
    match frame {
        Some(frame) => channels * frame.len(framed_rows(frame, pass, channels)),
        None => PANELS * channels * pass.taps.len() * vectors * LANES,
    }
}

/// Vectors of positions that are computed together: where they are in the source that is held, and in the destination.
#[derive(Default)]
struct Group {
    bases: [usize; 3],
    vectors: usize,
    runs: Vec<Run>,
    /// Every vector is whole, and lies in the destination as it is.
    whole: bool,
}

impl Product<'_> {
    /// The next positions from column `first` on: what they read, and the column after them. Fills `groups`.
    fn next(&self, first: usize, channels: usize, vectors: usize, groups: &mut Vec<Group>) -> usize {
        let (grid, pitch) = (self.pass.grid, vectors * LANES);
        let mut count = 0;
        let mut group = |i: usize| -> *mut Group {
            if groups.len() <= i {
                groups.push(Group::default());
            }
            &raw mut groups[i]
        };
        let dense = self.pass.spread == [1, 1];
        let end;
        match &self.frame {
            Some(frame) => {
                let (sample, row) = (first / (grid[0] * grid[1]), first % (grid[0] * grid[1]) / grid[1]);
                let rows = framed_rows(frame, self.pass, channels).min((self.columns.end - first) / grid[1]);
                let all = rows * frame.vectors;
                for from in (0..all).step_by(vectors) {
                    // SAFETY: nothing else refers to the groups.
                    let g = unsafe { &mut *group(count) };
                    count += 1;
                    g.runs.clear();
                    g.vectors = vectors.min(all - from);
                    for v in 0..g.vectors {
                        let (r, x) = ((from + v) / frame.vectors, (from + v) % frame.vectors * LANES);
                        g.bases[v] = r * frame.width + x;
                        let len = LANES.min(grid[1] - x);
                        g.runs.push(Run { column: v * LANES, len, sample, at: [row + r, x] });
                    }
                    g.whole = dense && g.runs.iter().all(|r| r.len == LANES);
                }
                end = first + rows * grid[1];
            }
            None => {
                end = (first + PANELS * pitch).min(self.columns.end);
                for from in (first..end).step_by(pitch) {
                    // SAFETY: as above.
                    let g = unsafe { &mut *group(count) };
                    let to = (from + pitch).min(end);
                    runs(grid, from, to, &mut g.runs);
                    let panel = count * channels * self.pass.taps.len() * pitch;
                    g.vectors = (to - from).div_ceil(LANES);
                    g.bases = [0, 1, 2].map(|v| panel + v * LANES);
                    let ends = [g.runs.first(), g.runs.last()].map(|r| r.map(|r| r.sample));
                    g.whole = dense && ends[0] == ends[1] && (to - from).is_multiple_of(LANES);
                    count += 1;
                }
            }
        }
        groups.truncate(count);
        end
    }
}

impl Job for Product<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let (pass, taps) = (self.pass, self.pass.taps.len());
        let (tile_rows, tile_vectors) = L::TILE;
        let pitch = tile_vectors * LANES;
        let source_plane = pass.source[0] * pass.source[1];
        let target_plane = pass.target[0] * pass.target[1];
        let sample_len = self.channels_of_sample[0] * source_plane;
        let depth = self.channels * taps;
        let at_once = channels_at_once(self.channels, taps);
        let mut offsets = Vec::with_capacity(at_once * taps);
        let framed = self.frame.as_ref().map_or(0, |f| f.len(framed_rows(f, pass, at_once)));
        for i in 0..at_once * taps {
            offsets.push(match &self.frame {
                Some(frame) => i / taps * framed + frame.place(&pass.taps[i % taps]),
                None => i * pitch,
            });
        }
        let (mut groups, mut list) = (Vec::new(), Vec::new());
        let mut first = self.columns.start;
        // SAFETY: scratch holds the source and one tile; rows and columns stay within the planes.
        unsafe {
            let result = self.scratch.add(held(pass, self.frame.as_ref(), self.channels, L::TILE));
            while first < self.columns.end {
                let next = self.next(first, at_once, tile_vectors, &mut groups);
                let mut channel = 0;
                while channel < self.channels {
                    let channels = at_once.min(self.channels - channel);
                    let source = self.source.add(channel * source_plane);
                    if let Some(frame) = &self.frame {
                        let Run { sample, at, .. } = groups[0].runs[0];
                        let rows = (next - first) / pass.grid[1];
                        for c in 0..channels {
                            let plane = source.add(sample * sample_len + c * source_plane);
                            frame.copy::<L>(pass, plane, at[0], rows, self.scratch.add(c * framed));
                        }
                    } else {
                        for g in &groups {
                            let panel = self.scratch.add(g.bases[0]);
                            unfold::<L>(pass, source, sample_len, channels, panel, pitch, (&g.runs, &mut list));
                        }
                    }
                    let add = self.add || channel > 0;
                    let init = if channel == 0 { self.bias } else { std::ptr::null() };
                    let offsets = &offsets[..channels * taps];
                    let mut row = 0;
                    while row < self.rows {
                        let rows = tile_rows.min(self.rows - row);
                        let a = self.weights.add(row * depth + channel * taps * rows);
                        let init = if init.is_null() { init } else { init.add(row) };
                        for g in &groups {
                            let place = |sample: usize, at: [usize; 2]| {
                                let at = [0, 1].map(|d| pass.first[d] + at[d] * pass.spread[d]);
                                let plane = sample * self.channels_of_sample[1] + row;
                                self.target.add(plane * target_plane + at[0] * pass.target[1] + at[1])
                            };
                            let mut b = [self.scratch.cast_const(); 3];
                            let mut c = [result, result.add(LANES), result.add(2 * LANES)];
                            let direct = g.whole && !add;
                            for v in 0..g.vectors {
                                b[v] = b[v].add(g.bases[v]);
                                if direct {
                                    let r = if self.frame.is_some() { g.runs[v] } else { g.runs[0] };
                                    c[v] = place(r.sample, r.at).add(v * LANES - r.column);
                                }
                            }
                            let ld = if direct { target_plane } else { pitch };
                            with_sizes!(tile, L, rows, g.vectors, [1 2 3 4 5 6 7 8][1 2 3], (offsets, a, &b, init, &c, ld));
                            if direct {
                                continue;
                            }
                            for r in &g.runs {
                                let (from, to) = (result.add(r.column), place(r.sample, r.at));
                                for k in 0..rows {
                                    let (from, to) = (from.add(k * pitch), to.add(k * target_plane));
                                    if pass.spread[1] == 1 {
                                        copy::<L>(from, to, r.len, add);
                                    } else {
                                        for j in 0..r.len {
                                            let to = to.add(j * pass.spread[1]);
                                            *to = *from.add(j) + if add { *to } else { 0.0 };
                                        }
                                    }
                                }
                            }
                        }
                        row += rows;
                    }
                    channel += channels;
                }
                first = next;
            }
        }
    }
}

/// Weights as [`Product`] reads them: for every group, blocks of `tile` rows, each [channels, taps, rows of the block].
///
/// `at(group, row, channel)` is where the kernel of a row and a channel starts.
fn pack(
    weight: &[f32],
    (groups, rows, channels): (usize, usize, usize),
    taps: &[Tap],
    tile: usize,
    at: impl Fn(usize, usize, usize) -> usize,
    out: &mut Vec<f32>,
) {
    out.clear();
    out.resize(groups * rows * channels * taps.len(), 0.0);
    let mut blocks = out.as_mut_slice();
    for group in 0..groups {
        for first in (0..rows).step_by(tile) {
            let width = tile.min(rows - first);
            let (block, rest) = blocks.split_at_mut(width * channels * taps.len());
            blocks = rest;
            for r in 0..width {
                for c in 0..channels {
                    let kernel = &weight[at(group, first + r, c)..];
                    for (t, tap) in taps.iter().enumerate() {
                        block[(c * taps.len() + t) * width + r] = kernel[tap.index];
                    }
                }
            }
        }
    }
}

/// The columns of one task: whole samples or a part of one, so that a task is long enough to be worth a thread's while.
fn tasks(pass: &Pass, framed: bool, n: usize, pitch: usize) -> Vec<std::ops::Range<usize>> {
    let plane = pass.grid[0] * pass.grid[1];
    // Panels end with their sample unless it is small.
    let unit = if framed || plane >= 2 * pitch { plane } else { n * plane };
    let span = if framed { 16 * pass.grid[1] } else { 8 * PANELS * pitch };
    let mut out = Vec::new();
    for start in (0..n * plane).step_by(unit.max(1)) {
        out.extend((start..start + unit).step_by(span).map(|q| q..(q + span).min(start + unit)));
    }
    out
}

/// A tensor [N, channels, …] of a product.
struct Side<P> {
    data: Raw<P>,
    channels: usize,
}

#[allow(clippy::too_many_arguments)]
fn product(
    g: &Geometry,
    pass: &Pass,
    source: &Side<*const f32>,
    target: &Side<*mut f32>,
    packed: &[f32],
    bias: Option<&[f32]>,
    add: bool,
    level: Level,
    pool: &dyn Pool,
) {
    let tile = level.tile();
    let (channels, rows) = (source.channels / g.groups, target.channels / g.groups);
    let frame = Frame::new(pass);
    let tasks = tasks(pass, frame.is_some(), g.n, tile.1 * LANES);
    let numbers = held(pass, frame.as_ref(), channels, tile) + tile.0 * tile.1 * LANES;
    let (source_plane, target_plane) = (pass.source[0] * pass.source[1], pass.target[0] * pass.target[1]);
    let weights = Raw(packed.as_ptr());
    let bias = Raw(bias.map_or(std::ptr::null(), <[f32]>::as_ptr));
    pool.run(tasks.len() * g.groups, &|task| {
        let (group, columns) = (task / tasks.len(), tasks[task % tasks.len()].clone());
        let bias = bias.get();
        SCRATCH.with_buffer_of(numbers, |scratch| {
            // SAFETY: the level is one this processor has; the planes of the group are within the tensors, and no two tasks write
            // the same positions.
            unsafe {
                let job = Product {
                    pass,
                    frame,
                    source: source.data.get().add(group * channels * source_plane),
                    target: target.data.get().add(group * rows * target_plane),
                    channels_of_sample: [source.channels, target.channels],
                    channels,
                    rows,
                    weights: weights.get().add(group * rows * channels * pass.taps.len()),
                    bias: if bias.is_null() { bias } else { bias.add(group * rows) },
                    add,
                    columns,
                    scratch,
                };
                run(level, &job);
            }
        });
    });
}

/// Y = W ∗ X + B.
///
/// Slices have the lengths of X, W, B `[M]` and Y.
pub fn forward(
    g: &Geometry,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
    level: Level,
    pool: &dyn Pool,
) -> Result<()> {
    g.check(x.len(), weight.len(), y.len())?;
    let pass = forward_pass(g);
    let (rows, channels) = (g.m / g.groups, g.c / g.groups);
    let at = |group: usize, row: usize, channel: usize| ((group * rows + row) * channels + channel) * g.taps();
    let source = Side { data: Raw(x.as_ptr()), channels: g.c };
    let target = Side { data: Raw(y.as_mut_ptr()), channels: g.m };
    WEIGHTS.with_buffer(|packed| {
        pack(weight, (g.groups, rows, channels), &pass.taps, level.tile().0, at, packed);
        product(g, &pass, &source, &target, packed, bias, false, level, pool);
    });
    Ok(())
}

/// X̄ = Wᵀ ∗ Ȳ, added to `dx` if `add`.
///
/// Slices have the lengths of Ȳ, W and X.
pub fn input_gradient(
    g: &Geometry,
    dy: &[f32],
    weight: &[f32],
    dx: &mut [f32],
    add: bool,
    level: Level,
    pool: &dyn Pool,
) -> Result<()> {
    g.check(dx.len(), weight.len(), dy.len())?;
    let (rows, channels) = (g.c / g.groups, g.m / g.groups);
    let at = |group: usize, row: usize, channel: usize| ((group * channels + channel) * rows + row) * g.taps();
    for pass in gradient_passes(g) {
        if pass.taps.is_empty() && add {
            continue;
        }
        let source = Side { data: Raw(dy.as_ptr()), channels: g.m };
        let target = Side { data: Raw(dx.as_mut_ptr()), channels: g.c };
        WEIGHTS.with_buffer(|packed| {
            pack(weight, (g.groups, rows, channels), &pass.taps, level.tile().0, at, packed);
            product(g, &pass, &source, &target, packed, None, add, level, pool);
        });
    }
    Ok(())
}

/// Columns of a panel of the weight gradient: many, because the lanes of every dot product are summed at their end.
const SPAN: usize = 2048;
/// Rows of Ȳ and of the unfolded X in one panel.
const DY_ROWS: usize = 64;
const X_ROWS: usize = 36;

/// A part of the columns' share of the weight gradient of one group.
struct Dots<'a> {
    forward: &'a Pass,
    identity: &'a Pass,
    frame: Option<Frame>,
    x: *const f32,
    dy: *const f32,
    channels_of_sample: [usize; 2],
    channels: usize,
    rows: usize,
    columns: std::ops::Range<usize>,
    /// [rows, channels·taps], zeros at first.
    sum: *mut f32,
    scratch: *mut f32,
}

/// Columns that are summed at once: whole rows where they are framed.
fn span(pass: &Pass, frame: Option<&Frame>) -> usize {
    match frame {
        Some(frame) => (SPAN / (frame.vectors * LANES)).max(1) * pass.grid[1],
        None => SPAN,
    }
}

/// Numbers of one row of Ȳ in its panel, and of the X in its.
fn dots_panels(pass: &Pass, frame: Option<&Frame>) -> (usize, usize) {
    let channels = (X_ROWS / pass.taps.len().max(1)).max(1);
    match frame {
        Some(frame) => {
            let rows = span(pass, Some(frame)) / pass.grid[1];
            // Every sample that begins in the span has rows of its own above and below.
            let samples = rows.div_ceil(pass.grid[0]) + 1;
            (rows * frame.vectors * LANES, channels * (rows + samples * frame.rows) * frame.width)
        }
        None => (SPAN, channels * pass.taps.len() * SPAN),
    }
}

impl Job for Dots<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let (pass, taps) = (self.forward, self.forward.taps.len());
        let [x_plane, dy_plane] = [pass, self.identity].map(|p| p.source[0] * p.source[1]);
        let (depth, grid) = (self.channels * taps, pass.grid);
        let [x_sample, dy_sample] = [self.channels_of_sample[0] * x_plane, self.channels_of_sample[1] * dy_plane];
        let at_once = (X_ROWS / taps.max(1)).max(1);
        let (left_pitch, right_len) = dots_panels(pass, self.frame.as_ref());
        let (mut list, mut all, mut strips) = (Vec::new(), Vec::new(), Vec::new());
        let mut from = self.columns.start;
        // SAFETY: scratch holds both panels; rows stay within the tensors and the sums.
        unsafe {
            let (left, right) = (self.scratch, self.scratch.add(DY_ROWS * left_pitch));
            while from < self.columns.end {
                let to = (from + span(pass, self.frame.as_ref())).min(self.columns.end);
                runs(grid, from, to, &mut all);
                strips.clear();
                let mut vectors = (to - from).div_ceil(LANES);
                // Numbers of one channel of X in its panel.
                let mut len = right_len / at_once;
                if let Some(frame) = &self.frame {
                    vectors = frame.vectors;
                    let (mut rows, mut sample) = (0, all[0].sample);
                    for (i, r) in all.iter_mut().enumerate() {
                        if r.sample != sample {
                            (rows, sample) = (rows + frame.rows, r.sample);
                        }
                        strips.push(Strip { left: i * vectors * LANES, right: rows * frame.width });
                        r.column = i * vectors * LANES;
                        rows += 1;
                    }
                    len = frame.len(rows);
                } else {
                    strips.push(Strip { left: 0, right: 0 });
                }
                let mut row = 0;
                while row < self.rows {
                    let rows = DY_ROWS.min(self.rows - row);
                    let dy = self.dy.add(row * dy_plane);
                    unfold::<L>(self.identity, dy, dy_sample, rows, left, left_pitch, (&all, &mut list));
                    // Lanes without a position must not count.
                    let rest = match self.frame {
                        Some(_) => vectors * LANES - grid[1],
                        None => vectors * LANES - (to - from),
                    };
                    if rest > 0 {
                        for (r, strip) in (0..rows).flat_map(|r| strips.iter().map(move |s| (r, s))) {
                            let end = strip.left + vectors * LANES - rest;
                            fill_zero::<L>(left.add(r * left_pitch + end), rest);
                        }
                    }
                    let mut channel = 0;
                    while channel < self.channels {
                        let channels = at_once.min(self.channels - channel);
                        let x = self.x.add(channel * x_plane);
                        if let Some(frame) = &self.frame {
                            for c in 0..channels {
                                let (mut i, mut to) = (0, right.add(c * len));
                                while i < all.len() {
                                    let Run { sample, at, .. } = all[i];
                                    let rows = all[i..].iter().take_while(|r| r.sample == sample).count();
                                    let plane = x.add(sample * x_sample + c * x_plane);
                                    frame.copy::<L>(pass, plane, at[0], rows, to);
                                    to = to.add(frame.len(rows));
                                    i += rows;
                                }
                            }
                        } else {
                            unfold::<L>(pass, x, x_sample, channels, right, SPAN, (&all, &mut list));
                            if rest > 0 {
                                for r in 0..channels * taps {
                                    fill_zero::<L>(right.add(r * SPAN + to - from), rest);
                                }
                            }
                        }
                        let mut i = 0;
                        while i < rows {
                            let high = L::DOTS.0.min(rows - i);
                            let mut j = 0;
                            while j < channels * taps {
                                let wide = L::DOTS.1.min(channels * taps - j);
                                let a = left.add(i * left_pitch);
                                let mut b = [right.cast_const(); 6];
                                for (v, b) in b.iter_mut().enumerate().take(wide) {
                                    *b = b.add(match &self.frame {
                                        Some(f) => (j + v) / taps * len + f.place(&pass.taps[(j + v) % taps]),
                                        None => (j + v) * SPAN,
                                    });
                                }
                                let c = self.sum.add((row + i) * depth + channel * taps + j);
                                with_sizes!(dots, L, high, wide, [1 2 3 4][1 2 3 4 5 6], (&strips, vectors, a, left_pitch, &b, c, depth));
                                j += wide;
                            }
                            i += high;
                        }
                        channel += channels;
                    }
                    row += rows;
                }
                from = to;
            }
        }
    }
}

/// Parts of the columns whose weight gradients are summed apart, at most.
const PARTS: usize = 8;
/// Numbers all parts together may take.
const PART_NUMBERS: usize = 8 << 20;

/// W̄ = Σ Ȳ·unfolded(X)ᵀ.
///
/// Slices have the lengths of X, Ȳ and W.
pub fn weight_gradient(
    g: &Geometry,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    level: Level,
    pool: &dyn Pool,
) -> Result<()> {
    g.check(x.len(), dw.len(), dy.len())?;
    let forward = forward_pass(g);
    let tap = Tap { offset: [0, 0], index: 0 };
    let identity = Pass { source: g.output, step: [1, 1], taps: vec![tap], ..forward.clone() };
    let (rows, channels) = (g.m / g.groups, g.c / g.groups);
    let frame = Frame::new(&forward);
    let (left, right) = dots_panels(&forward, frame.as_ref());
    // Parts of whole rows where they are framed.
    let unit = if frame.is_some() { g.output[1] } else { 1 };
    let columns = g.n * g.output[0] * g.output[1] / unit;
    let parts = (PART_NUMBERS / dw.len().max(1))
        .clamp(1, PARTS)
        .min((columns * unit).div_ceil(LANES).max(1))
        .min(columns.max(1));
    // With few parts the rows are divided too.
    let slices = if g.groups == 1 { (PARTS / parts).clamp(1, rows.div_ceil(DY_ROWS)) } else { 1 };
    SUMS.with_buffer(|sums| {
        sums.clear();
        sums.resize(parts * dw.len(), 0.0);
        let depth = channels * g.taps();
        let [x_plane, dy_plane] = [g.input, g.output].map(|p| p[0] * p[1]);
        let (px, pdy, psum) = (Raw(x.as_ptr()), Raw(dy.as_ptr()), Raw(sums.as_mut_ptr()));
        pool.run(g.groups * parts * slices, &|task| {
            let (group, part, slice) = (task / (parts * slices), task / slices % parts, task % slices);
            let bounds = |i: usize| columns * i / parts * unit;
            let row = |i: usize| rows * i / slices;
            SCRATCH.with_buffer_of(DY_ROWS * left + right, |scratch| {
                // SAFETY: as in `product`; every task has rows of a part of its own in the sums.
                unsafe {
                    let first = group * rows + row(slice);
                    let job = Dots {
                        forward: &forward,
                        identity: &identity,
                        frame,
                        x: px.get().add(group * channels * x_plane),
                        dy: pdy.get().add(first * dy_plane),
                        channels_of_sample: [g.c, g.m],
                        channels,
                        rows: row(slice + 1) - row(slice),
                        columns: bounds(part)..bounds(part + 1),
                        sum: psum.get().add(part * g.m * depth + first * depth),
                        scratch,
                    };
                    run(level, &job);
                }
            });
        });
        let (first, rest) = sums.split_at(dw.len());
        dw.copy_from_slice(first);
        for part in rest.chunks_exact(dw.len().max(1)) {
            dw.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Backwards, error, numbers};
    use super::*;

    /// Calls `f` with the places of X, W and Y of every product of the convolution.
    fn products(g: &Geometry, mut f: impl FnMut(usize, usize, usize)) {
        let (rows, channels) = (g.m / g.groups, g.c / g.groups);
        for (n, m, c) in (0..g.n * g.m * channels).map(|i| (i / (g.m * channels), i / channels % g.m, i % channels)) {
            let plane = n * g.c + m / rows * channels + c;
            for (i, j) in (0..g.output[0] * g.output[1]).map(|p| (p / g.output[1], p % g.output[1])) {
                for t in 0..g.taps() {
                    let y = (i * g.strides[0] + t / g.kernel[1] * g.dilations[0]).checked_sub(g.begin[0]);
                    let x = (j * g.strides[1] + t % g.kernel[1] * g.dilations[1]).checked_sub(g.begin[1]);
                    if let (Some(y), Some(x)) = (y, x)
                        && y < g.input[0]
                        && x < g.input[1]
                    {
                        let from = (plane * g.input[0] + y) * g.input[1] + x;
                        let to = ((n * g.m + m) * g.output[0] + i) * g.output[1] + j;
                        f(from, (m * channels + c) * g.taps() + t, to);
                    }
                }
            }
        }
    }

    fn geometry(
        [n, c, m, groups]: [usize; 4],
        input: [usize; 2],
        kernel: [usize; 2],
        strides: [usize; 2],
        dilations: [usize; 2],
        (begin, end): ([usize; 2], [usize; 2]),
    ) -> Geometry {
        let output =
            [0, 1].map(|i| (input[i] + begin[i] + end[i] - dilations[i] * (kernel[i] - 1) - 1) / strides[i] + 1);
        Geometry { n, c, m, groups, input, output, kernel, strides, dilations, begin }
    }

    /// Every level against the definition, in f64: forward with and without bias, both gradients, and adding to what is there.
    fn agrees(g: &Geometry) {
        let len = |a: usize, p: [usize; 2]| g.n * a * p[0] * p[1];
        let (x, dy) = (numbers(1, len(g.c, g.input)), numbers(2, len(g.m, g.output)));
        let (w, bias) = (numbers(3, g.m * g.c / g.groups * g.taps()), numbers(4, g.m));
        let (mut y, mut dx, mut dw) = (vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; w.len()]);
        products(g, |i, j, k| {
            y[k] += f64::from(x[i]) * f64::from(w[j]);
            dx[i] += f64::from(dy[k]) * f64::from(w[j]);
            dw[j] += f64::from(dy[k]) * f64::from(x[i]);
        });
        let plane = g.output[0] * g.output[1];
        let with_bias: Vec<f64> = y.iter().enumerate().map(|(i, v)| v + f64::from(bias[i / plane % g.m])).collect();
        for level in Level::available() {
            // What is there before must not matter.
            let mut got = vec![f32::NAN; y.len()];
            forward(g, &x, &w, None, &mut got, level, &Backwards).expect("fits");
            assert!(error(&got, &y) < 1e-5, "{level:?} forward {} {g:?}", error(&got, &y));
            forward(g, &x, &w, Some(&bias), &mut got, level, &Backwards).expect("fits");
            assert!(error(&got, &with_bias) < 1e-5, "{level:?} bias {} {g:?}", error(&got, &with_bias));
            let mut got = vec![f32::NAN; dx.len()];
            input_gradient(g, &dy, &w, &mut got, false, level, &Backwards).expect("fits");
            assert!(error(&got, &dx) < 1e-5, "{level:?} input {} {g:?}", error(&got, &dx));
            input_gradient(g, &dy, &w, &mut got, true, level, &Backwards).expect("fits");
            let twice: Vec<f64> = dx.iter().map(|v| 2.0 * v).collect();
            assert!(error(&got, &twice) < 1e-5, "{level:?} added {} {g:?}", error(&got, &twice));
            let mut got = vec![f32::NAN; dw.len()];
            weight_gradient(g, &x, &dy, &mut got, level, &Backwards).expect("fits");
            assert!(error(&got, &dw) < 1e-5, "{level:?} weight {} {g:?}", error(&got, &dw));
        }
    }

    #[test]
    fn convolutions_of_every_kind_agree_with_the_definition() {
        let (one, none) = ([1, 1], ([0, 0], [0, 0]));
        let around = |p: usize| ([p, p], [p, p]);
        agrees(&geometry([2, 16, 16, 1], [32, 32], [3, 3], one, one, around(1)));
        agrees(&geometry([3, 5, 7, 1], [9, 11], [3, 3], one, one, around(1)));
        agrees(&geometry([3, 8, 16, 1], [8, 8], [3, 3], [2, 2], one, around(1)));
        agrees(&geometry([2, 3, 10, 1], [13, 17], [5, 3], [3, 2], one, ([2, 1], [0, 3])));
        agrees(&geometry([2, 4, 6, 1], [12, 12], [3, 3], one, [2, 3], around(2)));
        agrees(&geometry([2, 4, 6, 1], [12, 10], [3, 2], [2, 3], [3, 2], around(2)));
        agrees(&geometry([2, 6, 9, 3], [10, 10], [3, 3], one, one, around(1)));
        agrees(&geometry([2, 20, 20, 20], [9, 9], [3, 3], [2, 2], one, around(1)));
        agrees(&geometry([4, 33, 17, 1], [7, 7], [1, 1], one, one, none));
        agrees(&geometry([4, 9, 18, 1], [8, 8], [1, 1], [2, 2], one, none));
        agrees(&geometry([1, 3, 20, 1], [16, 16], [4, 4], [4, 4], one, none));
        agrees(&geometry([5, 70, 40, 1], [2, 2], [3, 3], one, one, around(1)));
        agrees(&geometry([3, 2, 3, 1], [1, 1], [1, 1], one, one, none));
        agrees(&geometry([1, 600, 4, 1], [5, 5], [1, 1], one, one, none));
        agrees(&geometry([2, 1, 1, 1], [6, 50], [7, 7], one, one, around(5)));
        // Rows of X that no window reads.
        agrees(&geometry([2, 2, 3, 1], [8, 8], [2, 2], [3, 3], one, none));
    }

    #[test]
    fn random_convolutions_agree_with_the_definition() {
        for seed in 0..60 {
            let r: Vec<usize> = numbers(100 + seed, 24).iter().map(|v| ((v + 1.0) * 500.0) as usize).collect();
            let groups = 1 + r[0] % 3;
            let kernel = [1 + r[1] % 4, 1 + r[2] % 4];
            let dilations = [1 + r[3] % 2, 1 + r[4] % 2];
            let pads = |i: usize| [r[i] % 3, r[i + 1] % 3];
            let input = [0, 1].map(|i| dilations[i] * (kernel[i] - 1) + 1 + r[9 + i] % 20);
            let sizes = [1 + r[11] % 4, groups * (1 + r[12] % 9), groups * (1 + r[13] % 19), groups];
            let strides = [1 + r[14] % 3, 1 + r[15] % 3];
            agrees(&geometry(sizes, input, kernel, strides, dilations, (pads(5), pads(7))));
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_errors() {
        let g = geometry([1, 2, 3, 1], [4, 4], [3, 3], [1, 1], [1, 1], ([1, 1], [1, 1]));
        let (x, w) = (vec![0.0; 32], vec![0.0; 54]);
        let run = |w: &[f32], y: usize| forward(&g, &x, w, None, &mut vec![0.0; y], Level::best(), &Backwards);
        assert!(run(&w, 48).is_ok());
        assert!(run(&w, 47).is_err());
        assert!(run(&w[1..], 48).is_err());
    }
}
