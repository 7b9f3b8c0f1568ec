//! Maxima of windows over images, and their gradient, which finds each maximum again instead of keeping its place.
//!
//! Where several elements are the greatest, the first counts; an element that is not a number is greater than all (both as in PyTorch).

use super::simd::{Job, Lanes, Level, run};
use super::{Pool, Raw};
use crate::error::{Error, Result};
use std::ops::Range;

/// X [P,H,W] → Y [P,O₁,O₂], one plane for every sample and channel; output (i, j) reads input i·stride − begin + t·dilation, t < kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Height and width of X.
    pub input: [usize; 2],
    /// Height and width of Y.
    pub output: [usize; 2],
    /// Height and width of a window.
    pub kernel: [usize; 2],
    /// Strides.
    pub strides: [usize; 2],
    /// Dilations.
    pub dilations: [usize; 2],
    /// What windows reach over above and to the left of X; it counts as nothing.
    pub begin: [usize; 2],
}

/// Elements of X that make a part worth a thread's while.
const PART: usize = 16384;

impl Windows {
    /// The outputs whose element `t` of the window lies within X, along one dimension.
    fn inside(&self, d: usize, t: usize) -> Range<usize> {
        let (tap, begin, stride) = (t * self.dilations[d], self.begin[d], self.strides[d]);
        let end = (self.input[d] + begin).saturating_sub(tap).div_ceil(stride).min(self.output[d]);
        begin.saturating_sub(tap).div_ceil(stride).min(end)..end
    }

    /// The greatest element of every window of a row of outputs, −∞ where there is none, and for the gradient its place in the plane `x`.
    #[inline(always)]
    fn row(&self, x: &[f32], o: usize, columns: &[Range<usize>], best: &mut [f32], at: &mut [u32]) {
        best.fill(f32::NEG_INFINITY);
        // Windows of −∞ alone have their maximum at their first element.
        at.fill(u32::MAX);
        let placed = !at.is_empty();
        for t in (0..self.kernel[0]).filter(|t| self.inside(0, *t).contains(&o)) {
            let line = (o * self.strides[0] + t * self.dilations[0] - self.begin[0]) * self.input[1];
            for (t, range) in columns.iter().enumerate().filter(|(_, range)| !range.is_empty()) {
                let first = line + range.start * self.strides[1] + t * self.dilations[1] - self.begin[1];
                let best = &mut best[range.clone()];
                let at = if placed { &mut at[range.clone()] } else { &mut [] };
                match (self.strides[1], placed) {
                    (1, true) => places::<1>(1, &x[first..], first, best, at),
                    (2, true) => places::<2>(2, &x[first..], first, best, at),
                    (stride, true) => places::<0>(stride, &x[first..], first, best, at),
                    (1, false) => greatest::<1>(1, &x[first..], best),
                    (2, false) => greatest::<2>(2, &x[first..], best),
                    (stride, false) => greatest::<0>(stride, &x[first..], best),
                }
            }
        }
    }

    /// Runs [`Planes`] on several threads.
    fn parts(&self, planes: usize, x: &[f32], dy: Option<&[f32]>, out: &mut [f32], level: Level, pool: &dyn Pool) {
        let each = (PART / (self.input[0] * self.input[1]).max(1)).max(1);
        let out = Raw(out.as_mut_ptr());
        pool.run(planes.div_ceil(each), &|i| {
            let range = i * each..((i + 1) * each).min(planes);
            // SAFETY: the level is one this processor has; every plane is in one part.
            unsafe { run(level, &Planes { windows: self, range, x, dy, out: out.get() }) };
        });
    }

    /// How many planes X and Y have.
    fn planes(&self, x: usize, y: usize) -> Result<usize> {
        let sizes = [self.input, self.output].map(|d| d[0] * d[1]);
        let planes = x / sizes[0].max(1);
        let zero = self.dilations.contains(&0) || self.strides.contains(&0);
        let odd = zero
            || self.input[0] * self.input[1] >= u32::MAX as usize
            || planes * sizes[0] != x
            || planes * sizes[1] != y;
        if odd { Err(Error::new(format!("{x} and {y} elements in planes of {sizes:?}"))) } else { Ok(planes) }
    }
}

/// Takes in one element of each of some windows, `stride` apart, known as STRIDE where that is not 0.
#[inline(always)]
fn greatest<const STRIDE: usize>(stride: usize, x: &[f32], best: &mut [f32]) {
    let stride = if STRIDE == 0 { stride } else { STRIDE };
    let n = best.len();
    let x = &x[..(n - 1) * stride + 1];
    for (i, best) in best.iter_mut().enumerate() {
        // SAFETY: the slice above ends with the last of these.
        let v = unsafe { *x.get_unchecked(i * stride) };
        *best = if (v > *best) | v.is_nan() { v } else { *best };
    }
}

/// As [`greatest`], with the places of the elements: x[0] lies at `first` of its plane.
#[inline(always)]
fn places<const STRIDE: usize>(stride: usize, x: &[f32], first: usize, best: &mut [f32], at: &mut [u32]) {
    let stride = if STRIDE == 0 { stride } else { STRIDE };
    let n = best.len().min(at.len());
    let (x, best, at) = (&x[..(n - 1) * stride + 1], &mut best[..n], &mut at[..n]);
    for i in 0..n {
        // SAFETY: the slice above ends with the last of these.
        let v = unsafe { *x.get_unchecked(i * stride) };
        let b = best[i];
        let greater = (v > b) | (v.is_nan() & !b.is_nan()) | (at[i] == u32::MAX);
        best[i] = if greater { v } else { b };
        at[i] = if greater { first as u32 + i as u32 * stride as u32 } else { at[i] };
    }
}

/// Some planes of a pooling: Y, or X̄.
struct Planes<'a> {
    windows: &'a Windows,
    range: Range<usize>,
    x: &'a [f32],
    /// Ȳ for the gradient.
    dy: Option<&'a [f32]>,
    out: *mut f32,
}

impl Job for Planes<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let w = self.windows;
        let columns: Vec<Range<usize>> = (0..w.kernel[1]).map(|t| w.inside(1, t)).collect();
        let (wide, [size, out]) = (w.output[1], [w.input, w.output].map(|d| d[0] * d[1]));
        let (mut best, mut at) = (vec![0.0; wide], vec![0; if self.dy.is_some() { wide } else { 0 }]);
        for p in self.range.clone() {
            let x = &self.x[p * size..(p + 1) * size];
            let each = if self.dy.is_some() { size } else { out };
            // SAFETY: the lengths are checked, and every plane is in one part.
            let target = unsafe { std::slice::from_raw_parts_mut(self.out.add(p * each), each) };
            if self.dy.is_some() {
                target.fill(0.0);
            }
            for o in 0..w.output[0] {
                w.row(x, o, &columns, &mut best, &mut at);
                match self.dy {
                    None => target[o * wide..(o + 1) * wide].copy_from_slice(&best),
                    Some(dy) => {
                        let dy = &dy[p * out + o * wide..];
                        for (at, dy) in at.iter().zip(dy) {
                            if let Some(dx) = target.get_mut(*at as usize) {
                                *dx += dy;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Y from X; a window without an element of X gives −∞.
pub fn forward(w: &Windows, x: &[f32], y: &mut [f32], level: Level, pool: &dyn Pool) -> Result<()> {
    let planes = w.planes(x.len(), y.len())?;
    w.parts(planes, x, None, y, level, pool);
    Ok(())
}

/// X̄ from X and Ȳ: every element the sum of Ȳ over the windows whose maximum it is.
pub fn gradient(w: &Windows, x: &[f32], dy: &[f32], dx: &mut [f32], level: Level, pool: &dyn Pool) -> Result<()> {
    let planes = w.planes(x.len(), dy.len())?;
    w.planes(dx.len(), dy.len())?;
    w.parts(planes, x, Some(dy), dx, level, pool);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Backwards, numbers};
    use super::*;

    /// Places of a window by their definition, without those outside of X.
    fn window(w: &Windows, o: [usize; 2]) -> Vec<usize> {
        let place = |d: usize, t: usize| {
            let i = (o[d] * w.strides[d] + t * w.dilations[d]).checked_sub(w.begin[d])?;
            (i < w.input[d]).then_some(i)
        };
        let rows = (0..w.kernel[0]).filter_map(|t| place(0, t));
        rows.flat_map(|i| (0..w.kernel[1]).filter_map(move |t| Some(i * w.input[1] + place(1, t)?))).collect()
    }

    #[test]
    fn maxima_and_their_gradients_are_their_definition() {
        let cases = [
            ([8, 8], [4, 4], [2, 2], [2, 2], [1, 1], [0, 0]),
            ([7, 9], [4, 5], [3, 3], [2, 2], [1, 1], [1, 1]),
            ([6, 5], [6, 5], [3, 2], [1, 1], [2, 1], [2, 0]),
            // The last windows reach over the end, as with `ceil_mode`; windows of padding alone.
            ([5, 5], [3, 3], [2, 2], [2, 2], [1, 1], [0, 0]),
            ([3, 3], [3, 2], [2, 2], [2, 2], [1, 1], [2, 1]),
        ];
        for (input, output, kernel, strides, dilations, begin) in cases {
            let w = Windows { input, output, kernel, strides, dilations, begin };
            let (size, out, planes) = (input[0] * input[1], output[0] * output[1], 7);
            // Few different numbers, so that windows have equal ones.
            let x: Vec<f32> = numbers(1, planes * size).iter().map(|v| (v * 3.0).round()).collect();
            let dy = numbers(2, planes * out);
            let (mut maxima, mut want) = (Vec::new(), vec![0.0; planes * size]);
            for p in 0..planes {
                for o in 0..out {
                    let places = window(&w, [o / output[1], o % output[1]]);
                    let best = places.iter().map(|i| x[p * size + i]).fold(f32::NEG_INFINITY, f32::max);
                    maxima.push(best);
                    if let Some(first) = places.iter().find(|i| x[p * size + **i] == best) {
                        want[p * size + first] += dy[p * out + o];
                    }
                }
            }
            for level in Level::available() {
                let (mut y, mut dx) = (vec![0.0; planes * out], vec![9.0; planes * size]);
                forward(&w, &x, &mut y, level, &Backwards).unwrap();
                gradient(&w, &x, &dy, &mut dx, level, &Backwards).unwrap();
                assert_eq!((y, dx), (maxima.clone(), want.clone()), "{level:?} {w:?}");
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays() {
        let w = Windows {
            input: [1, 4],
            output: [1, 2],
            kernel: [1, 2],
            strides: [1, 2],
            dilations: [1, 1],
            begin: [0, 0],
        };
        let (x, mut y, mut dx) = ([1.0, f32::NAN, f32::NEG_INFINITY, f32::NEG_INFINITY], [0.0; 2], [0.0; 4]);
        forward(&w, &x, &mut y, Level::best(), &Backwards).unwrap();
        assert!(y[0].is_nan() && y[1] == f32::NEG_INFINITY);
        gradient(&w, &x, &[2.0, 3.0], &mut dx, Level::best(), &Backwards).unwrap();
        assert_eq!(dx, [0.0, 2.0, 3.0, 0.0]);
    }

    #[test]
    fn wrong_lengths_are_errors() {
        let w = Windows {
            input: [2, 2],
            output: [1, 1],
            kernel: [2, 2],
            strides: [2, 2],
            dilations: [1, 1],
            begin: [0, 0],
        };
        assert!(forward(&w, &[0.0; 5], &mut [0.0; 1], Level::best(), &Backwards).is_err());
        assert!(gradient(&w, &[0.0; 8], &[0.0; 2], &mut [0.0; 4], Level::best(), &Backwards).is_err());
    }
}
