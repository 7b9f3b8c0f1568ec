//! A part of the matrix of dot products that a weight gradient is.

use super::conv::Pass;
use super::simd::{Job, LANES, Lanes, Register};
use super::unfold::{Frame, Run, fill_zero, runs, unfold};
use super::with_sizes;

/// A part of the columns of a matrix of dot products: `left` and `right` numbers into the rows of either side.
#[derive(Debug, Clone, Copy)]
struct Strip {
    left: usize,
    right: usize,
}

/// R rows of dot products with V columns: c [R, ld] += a·bᵀ over strips of `vectors` vectors, with rows of a `pitch` apart.
struct Tile<'a, const R: usize, const V: usize> {
    strips: &'a [Strip],
    vectors: usize,
    a: *const f32,
    pitch: usize,
    b: &'a [*const f32; 6],
    c: *mut f32,
    ld: usize,
}

impl<const R: usize, const V: usize> Job for Tile<'_, R, V> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        // SAFETY: the caller's pointers are good for the rows and strips.
        unsafe {
            let mut sums = [[L::Register::zero(); V]; R];
            for strip in self.strips {
                let a = self.a.add(strip.left);
                let mut right = [std::ptr::null(); V];
                for (v, p) in right.iter_mut().enumerate() {
                    *p = self.b[v].add(strip.right);
                }
                for at in (0..self.vectors * LANES).step_by(L::Register::LANES) {
                    let mut column = [L::Register::zero(); V];
                    for (v, x) in column.iter_mut().enumerate() {
                        *x = L::Register::load(right[v].add(at));
                    }
                    for (r, sum) in sums.iter_mut().enumerate() {
                        let y = L::Register::load(a.add(r * self.pitch + at));
                        for (s, x) in sum.iter_mut().zip(column) {
                            *s = y.mul_add(x, *s);
                        }
                    }
                }
            }
            for (r, sum) in sums.iter().enumerate() {
                for (v, s) in sum.iter().enumerate() {
                    *self.c.add(r * self.ld + v) += s.sum();
                }
            }
        }
    }
}

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
    unsafe { L::outlined(&Tile::<R, V> { strips, vectors, a, pitch, b, c, ld }) }
}

/// Columns of a panel of the weight gradient: many, because the lanes of every dot product are summed at their end.
const SPAN: usize = 2048;
/// Rows of Ȳ and of the unfolded X in one panel.
pub const DY_ROWS: usize = 64;
const X_ROWS: usize = 36;

/// A part of the columns' share of the weight gradient of one group.
pub struct Dots<'a> {
    pub forward: &'a Pass,
    pub identity: &'a Pass,
    pub frame: Option<Frame>,
    pub x: *const f32,
    pub dy: *const f32,
    pub channels_of_sample: [usize; 2],
    pub channels: usize,
    pub rows: usize,
    pub columns: std::ops::Range<usize>,
    /// [rows, channels·taps], zeros at first.
    pub sum: *mut f32,
    pub scratch: *mut f32,
}

/// Columns that are summed at once: whole rows where they are framed.
fn span(pass: &Pass, frame: Option<&Frame>) -> usize {
    match frame {
        Some(frame) => (SPAN / (frame.vectors * LANES)).max(1) * pass.grid[1],
        None => SPAN,
    }
}

/// Numbers of one row of Ȳ in its panel, and of the X in its.
pub fn dots_panels(pass: &Pass, frame: Option<&Frame>) -> (usize, usize) {
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
