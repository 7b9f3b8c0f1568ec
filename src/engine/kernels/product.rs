//! A part of the matrix product that a convolution is.

use super::conv::Pass;
use super::simd::{Job, LANES, Lanes};
use super::unfold::{Frame, Run, copy, runs, unfold};
use super::with_sizes;

/// R rows and V vectors of a product.
struct Tile<'a, const R: usize, const V: usize> {
    offsets: &'a [usize],
    a: *const f32,
    step: usize,
    b: [*const f32; 3],
    init: *const f32,
    c: [*mut f32; 3],
    ld: usize,
}

impl<const R: usize, const V: usize> Job for Tile<'_, R, V> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        // SAFETY: the caller's pointers are good for the rows and vectors.
        unsafe {
            let mut sums = [[L::splat(0.0); V]; R];
            if !self.init.is_null() {
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = [L::splat(*self.init.add(r)); V];
                }
            }
            let mut a = self.a;
            for offset in self.offsets {
                let mut column = [L::splat(0.0); V];
                for (v, x) in column.iter_mut().enumerate() {
                    *x = L::load(self.b[v].add(*offset));
                }
                for (r, sum) in sums.iter_mut().enumerate() {
                    let w = L::splat(*a.add(r));
                    for (s, x) in sum.iter_mut().zip(column) {
                        *s = w.mul_add(x, *s);
                    }
                }
                a = a.add(self.step);
            }
            for (r, sum) in sums.iter().enumerate() {
                for (v, s) in sum.iter().enumerate() {
                    s.store(self.c[v].add(r * self.ld));
                }
            }
        }
    }
}

/// R rows and V vectors of a product: c = init + a·b with the R numbers of column i of a at i·`step`, and row i of b at `offsets[i]` from each of `b`.
#[inline(always)]
pub unsafe fn tile<L: Lanes, const R: usize, const V: usize>(
    offsets: &[usize],
    a: *const f32,
    step: usize,
    b: [*const f32; 3],
    init: *const f32,
    c: [*mut f32; 3],
    ld: usize,
) {
    unsafe { L::outlined(&Tile::<R, V> { offsets, a, step, b, init, c, ld }) }
}

/// Rows of the unfolded matrix that are summed at once.
const DEPTH: usize = 512;
/// Panels that share one reading of the weights.
pub const PANELS: usize = 2;
/// Numbers of a framed part of the source, at most (unless one row of positions needs more).
const FRAMED: usize = 8192;

/// One pass over a part of its columns, for one group.
pub struct Product<'a> {
    pub pass: &'a Pass,
    pub frame: Option<Frame>,
    /// Source and destination planes of the group's first channel in the first sample.
    pub source: *const f32,
    pub target: *mut f32,
    /// Channels a sample has in the source and the destination, of all groups.
    pub channels_of_sample: [usize; 2],
    /// Source channels and destination rows of the group.
    pub channels: usize,
    pub rows: usize,
    /// Weights of the group, in blocks of TILE.0 rows, each [channels·taps, rows of the block].
    pub weights: *const f32,
    /// One for each row, or null.
    pub bias: *const f32,
    /// Adds to the destination.
    pub add: bool,
    pub columns: std::ops::Range<usize>,
    pub scratch: *mut f32,
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
pub fn held(pass: &Pass, frame: Option<&Frame>, channels: usize, (_, vectors): (usize, usize)) -> usize {
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
        let dense = self.pass.spread == [1, 1];
        let end;
        match &self.frame {
            Some(frame) => {
                let (sample, row) = (first / (grid[0] * grid[1]), first % (grid[0] * grid[1]) / grid[1]);
                let rows = framed_rows(frame, self.pass, channels).min((self.columns.end - first) / grid[1]);
                let all = rows * frame.vectors;
                groups.resize_with(all.div_ceil(vectors), Group::default);
                for (i, g) in groups.iter_mut().enumerate() {
                    let from = i * vectors;
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
                groups.resize_with((end - first).div_ceil(pitch), Group::default);
                for (i, g) in groups.iter_mut().enumerate() {
                    let from = first + i * pitch;
                    let to = (from + pitch).min(end);
                    runs(grid, from, to, &mut g.runs);
                    let panel = i * channels * self.pass.taps.len() * pitch;
                    g.vectors = (to - from).div_ceil(LANES);
                    g.bases = [0, 1, 2].map(|v| panel + v * LANES);
                    let ends = [g.runs.first(), g.runs.last()].map(|r| r.map(|r| r.sample));
                    g.whole = dense && ends[0] == ends[1] && (to - from).is_multiple_of(LANES);
                }
            }
        }
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
                            with_sizes!(tile, L, rows, g.vectors, [1 2 3 4 5 6 7 8][1 2 3], (offsets, a, rows, b, init, c, ld));
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
