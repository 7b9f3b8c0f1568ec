//! Depthwise convolution and its gradients, plane by plane.
//!
//! Where every group has one channel on either side there is no matrix product: a plane is summed over its kernel elements. The
//! source is framed by zeros and, for a stride, split by residue (its polyphase components), so that what a kernel element
//! reads for consecutive positions is contiguous. Rows of a frame follow each other, so a whole plane is one long vector
//! whatever its width; the numbers that come out between rows are dropped.

use super::conv::{Pass, Tap};
use super::simd::{Job, LANES, Lanes};
use super::unfold::{copy, fill_zero, gather};
use super::with_sizes;

/// Vectors of positions that are summed together.
const VECTORS: usize = 4;
/// Kernel elements whose weight gradients are summed together.
const TAPS: usize = 8;

/// How a source plane is laid out for a pass.
#[derive(Debug, Clone, Copy)]
struct Frame {
    /// The smallest offset of a kernel element.
    origin: [isize; 2],
    step: [usize; 2],
    /// Size of a component; positions are `width` apart from row to row.
    rows: usize,
    width: usize,
}

impl Frame {
    fn new(pass: &Pass) -> Self {
        let bounds = |axis: usize| {
            let offsets = pass.taps.iter().map(|t| t.offset[axis]);
            (offsets.clone().min().unwrap_or(0), offsets.max().unwrap_or(0))
        };
        let (y, x) = (bounds(0), bounds(1));
        let extent =
            |axis: usize, (low, high): (isize, isize)| pass.grid[axis] + (high - low) as usize / pass.step[axis];
        Self { origin: [y.0, x.0], step: pass.step, rows: extent(0, y), width: extent(1, x) }
    }

    /// Numbers of the components, and as many more as vectors may read past the last position.
    fn len(&self) -> usize {
        self.step[0] * self.step[1] * self.rows * self.width + self.width + LANES
    }

    /// Positions, with those between rows, in whole vectors.
    fn positions(&self, pass: &Pass) -> usize {
        (pass.grid[0] * self.width).next_multiple_of(LANES)
    }

    /// The component that a kernel element reads, and where in it the first position lies.
    fn place(&self, tap: &Tap) -> ([usize; 2], usize) {
        let at = [0, 1].map(|i| (tap.offset[i] - self.origin[i]) as usize);
        let residue = [at[0] % self.step[0], at[1] % self.step[1]];
        let component = residue[0] * self.step[1] + residue[1];
        (residue, (component * self.rows + at[0] / self.step[0]) * self.width + at[1] / self.step[1])
    }

    /// Which components are read, as residues.
    fn components(&self, pass: &Pass) -> Vec<[usize; 2]> {
        let mut read: Vec<[usize; 2]> = pass.taps.iter().map(|t| self.place(t).0).collect();
        read.sort_unstable();
        read.dedup();
        read
    }

    /// Lays out a plane.
    #[inline(always)]
    unsafe fn fill<L: Lanes>(&self, pass: &Pass, components: &[[usize; 2]], plane: *const f32, to: *mut f32) {
        let [height, width] = pass.source.map(|s| s as isize);
        let step = self.step[1];
        for r in components {
            let x = self.origin[1] + r[1] as isize;
            // x + j·step in 0..width
            let left = if x < 0 { (-x) as usize } else { 0 }.div_ceil(step).min(self.width);
            let end = if x < width { ((width - x) as usize).div_ceil(step) } else { 0 }.clamp(left, self.width);
            let skip = x + (left * step) as isize;
            // SAFETY: rows and columns lie within the plane and the component.
            unsafe {
                let mut to = to.add((r[0] * step + r[1]) * self.rows * self.width);
                for i in 0..self.rows {
                    let y = (i * self.step[0] + r[0]) as isize + self.origin[0];
                    if y < 0 || y >= height || left == end {
                        fill_zero::<L>(to, self.width);
                    } else {
                        fill_zero::<L>(to, left);
                        let from = plane.offset(y * width + skip);
                        gather::<L>(from, step, to.add(left), end - left);
                        fill_zero::<L>(to.add(end), self.width - end);
                    }
                    to = to.add(self.width);
                }
            }
        }
    }
}

/// One pass over some planes.
pub struct Planes<'a> {
    pub pass: &'a Pass,
    pub source: *const f32,
    pub target: *mut f32,
    /// One kernel for each channel, of `kernel` elements.
    pub weights: *const f32,
    pub kernel: usize,
    pub channels: usize,
    /// One for each channel, or null.
    pub bias: *const f32,
    /// Adds to the destination.
    pub add: bool,
    /// Counted over samples and channels.
    pub planes: std::ops::Range<usize>,
    pub scratch: *mut f32,
}

/// Numbers of scratch that [`Planes`] needs.
pub fn held(pass: &Pass) -> usize {
    let frame = Frame::new(pass);
    frame.len() + frame.positions(pass)
}

/// V vectors of positions: bias + Σ weight·source over the kernel elements (place, index, weight).
#[inline(always)]
unsafe fn sums<L: Lanes, const V: usize, const U: usize>(
    taps: &[(usize, usize, f32)],
    bias: L,
    from: *const f32,
    to: *mut f32,
) {
    unsafe {
        let mut sums = [bias; V];
        for (place, _, weight) in taps {
            let (w, from) = (L::splat(*weight), from.add(*place));
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = w.mul_add(L::load(from.add(v * LANES)), *sum);
            }
        }
        for (v, sum) in sums.iter().enumerate() {
            sum.store(to.add(v * LANES));
        }
    }
}

impl Job for Planes<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let pass = self.pass;
        let frame = Frame::new(pass);
        let components = frame.components(pass);
        let mut taps: Vec<(usize, usize, f32)> = pass.taps.iter().map(|t| (frame.place(t).1, t.index, 0.0)).collect();
        let [source_plane, target_plane] = [pass.source, pass.target].map(|p| p[0] * p[1]);
        let positions = frame.positions(pass);
        // SAFETY: scratch holds the frame and the result; rows stay within the planes.
        unsafe {
            let result = self.scratch.add(frame.len());
            for plane in self.planes.clone() {
                let channel = plane % self.channels;
                frame.fill::<L>(pass, &components, self.source.add(plane * source_plane), self.scratch);
                let kernel = self.weights.add(channel * self.kernel);
                for tap in &mut taps {
                    tap.2 = *kernel.add(tap.1);
                }
                let bias = L::splat(if self.bias.is_null() { 0.0 } else { *self.bias.add(channel) });
                let mut at = 0;
                while at < positions {
                    let vectors = VECTORS.min((positions - at) / LANES);
                    let (from, to) = (self.scratch.add(at).cast_const(), result.add(at));
                    with_sizes!(sums, L, vectors, 1, [1 2 3 4][1], (&taps, bias, from, to));
                    at += vectors * LANES;
                }
                let target = self.target.add(plane * target_plane);
                for i in 0..pass.grid[0] {
                    let from = result.add(i * frame.width);
                    let to = target.add((pass.first[0] + i * pass.spread[0]) * pass.target[1] + pass.first[1]);
                    if pass.spread[1] == 1 {
                        copy::<L>(from, to, pass.grid[1], self.add);
                    } else {
                        for j in 0..pass.grid[1] {
                            let to = to.add(j * pass.spread[1]);
                            *to = *from.add(j) + if self.add { *to } else { 0.0 };
                        }
                    }
                }
            }
        }
    }
}

/// A channel's weight gradient, summed over some samples.
pub struct Dots<'a> {
    /// The forward pass.
    pub pass: &'a Pass,
    /// The channel's plane in the first sample.
    pub x: *const f32,
    pub dy: *const f32,
    pub channels: usize,
    pub samples: std::ops::Range<usize>,
    /// One number for each kernel element.
    pub sum: *mut f32,
    pub scratch: *mut f32,
}

/// Numbers of scratch that [`Dots`] needs.
pub fn dots_held(pass: &Pass) -> usize {
    let frame = Frame::new(pass);
    frame.len() + frame.positions(pass) + pass.taps.len() * LANES
}

/// T kernel elements: sums [T] of vectors += y·x over `vectors` vectors.
#[inline(always)]
unsafe fn dots<L: Lanes, const T: usize, const U: usize>(
    places: &[usize],
    x: *const f32,
    y: *const f32,
    vectors: usize,
    sums: *mut f32,
) {
    unsafe {
        let mut all = [L::splat(0.0); T];
        let mut from = [x; T];
        for (t, (sum, from)) in all.iter_mut().zip(&mut from).enumerate() {
            *sum = L::load(sums.add(t * LANES));
            *from = x.add(places[t]);
        }
        for i in 0..vectors {
            let y = L::load(y.add(i * LANES));
            for (sum, from) in all.iter_mut().zip(from) {
                *sum = y.mul_add(L::load(from.add(i * LANES)), *sum);
            }
        }
        for (t, sum) in all.iter().enumerate() {
            sum.store(sums.add(t * LANES));
        }
    }
}

impl Job for Dots<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let pass = self.pass;
        let frame = Frame::new(pass);
        let components = frame.components(pass);
        let places: Vec<usize> = pass.taps.iter().map(|t| frame.place(t).1).collect();
        let [x_plane, dy_plane] = [pass.source, pass.grid].map(|p| p[0] * p[1]);
        let (positions, columns) = (frame.positions(pass), pass.grid[1]);
        // SAFETY: scratch holds the frame, Ȳ laid out like positions, and the sums; rows stay within the planes.
        unsafe {
            let y = self.scratch.add(frame.len());
            let sums = y.add(positions);
            fill_zero::<L>(sums, places.len() * LANES);
            // What lies past the last position meets zeros of Ȳ, and must be numbers.
            fill_zero::<L>(self.scratch, frame.len());
            fill_zero::<L>(y, positions);
            for sample in self.samples.clone() {
                let plane = sample * self.channels;
                frame.fill::<L>(pass, &components, self.x.add(plane * x_plane), self.scratch);
                for i in 0..pass.grid[0] {
                    let from = self.dy.add(plane * dy_plane + i * columns);
                    copy::<L>(from, y.add(i * frame.width), columns, false);
                }
                let mut t = 0;
                while t < places.len() {
                    let n = TAPS.min(places.len() - t);
                    let (x, vectors, sums) = (self.scratch.cast_const(), positions / LANES, sums.add(t * LANES));
                    with_sizes!(dots, L, n, 1, [1 2 3 4 5 6 7 8][1], (&places[t..], x, y, vectors, sums));
                    t += n;
                }
            }
            for (t, tap) in pass.taps.iter().enumerate() {
                *self.sum.add(tap.index) = L::load(sums.add(t * LANES)).sum();
            }
        }
    }
}
