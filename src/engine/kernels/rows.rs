//! What works on rows by themselves: LayerNormalization, RMSNormalization, Softmax, and their gradients.
//!
//! A row stays in the nearest cache while it is read several times. Moments run in f32 over sixteen lanes and in f64 from there. How
//! rows are divided depends on the shapes alone, so results do not depend on the number of threads.

use super::math::{SMALLEST, exp};
use super::norm::{plane_square, plane_sum, put, some};
use super::simd::{Job, LANES, Lanes, Level, run};
use super::{Pool, Raw};
use crate::error::{Error, Result};
use std::ops::Range;

/// A matrix of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// Number of rows.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
}

/// Parts the rows are divided into at most.
const PARTS: usize = 64;
/// Elements that a part has at least.
const PART: usize = 4096;

impl Rows {
    fn parts(self) -> usize {
        (self.rows * self.width / PART).clamp(1, PARTS).min(self.rows.max(1))
    }

    fn part(self, i: usize) -> Range<usize> {
        self.rows * i / self.parts()..self.rows * (i + 1) / self.parts()
    }

    fn check(self, tensors: &[usize], vectors: &[usize]) -> Result<()> {
        let len = self.rows * self.width;
        if len > 0 && tensors.iter().all(|t| *t == len) && vectors.iter().all(|v| *v == self.width) {
            return Ok(());
        }
        Err(Error::new(format!("tensors of {tensors:?} and vectors of {vectors:?} elements do not fit {self:?}")))
    }
}

/// What a normalization takes off a row before it scales it, and the number that keeps it from dividing by 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// The mean is taken off (LayerNormalization), or nothing (RMSNormalization).
    pub centred: bool,
    /// Added to the variance.
    pub epsilon: f32,
}

/// Mean, or 0, and one over the deviation of a row.
#[inline(always)]
unsafe fn moments<L: Lanes>(x: *const f32, width: usize, scale: Scale) -> (f32, f32) {
    unsafe {
        let n = width as f64;
        let mean = if scale.centred { plane_sum::<L>(x, width) / n } else { 0.0 };
        let rest = mean - f64::from(mean as f32);
        let variance = plane_square::<L>(x, width, mean as f32) / n - rest * rest;
        (mean as f32, (1.0 / (variance + f64::from(scale.epsilon)).sqrt()) as f32)
    }
}

/// Some of γ, which is 1 where it is null.
#[inline(always)]
unsafe fn one_or<L: Lanes>(gain: *const f32, i: usize, left: usize) -> L {
    unsafe { if gain.is_null() { L::splat(1.0) } else { some::<L>(gain.add(i), left) } }
}

/// y = γ(x − μ)/σ + β
struct Normalize {
    rows: Range<usize>,
    width: usize,
    scale: Scale,
    x: *const f32,
    gain: *const f32,
    bias: *const f32,
    y: *mut f32,
}

impl Job for Normalize {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        for row in self.rows.clone() {
            // SAFETY: the row is within X and Y; γ and β, where they are not null, are as wide.
            unsafe {
                let (x, y) = (self.x.add(row * self.width), self.y.add(row * self.width));
                let (mean, rstd) = moments::<L>(x, self.width, self.scale);
                let (mean, rstd) = (L::splat(mean), L::splat(rstd));
                let mut i = 0;
                while i < self.width {
                    let left = self.width - i;
                    let hat = some::<L>(x.add(i), left).sub(mean).mul(rstd);
                    let gain = one_or::<L>(self.gain, i, left);
                    let bias = if self.bias.is_null() { L::splat(0.0) } else { some::<L>(self.bias.add(i), left) };
                    put(hat.mul_add(gain, bias), y.add(i), left);
                    i += LANES;
                }
            }
        }
    }
}

/// Y = γ(X − μ)/√(v + ε) + β over every row; without `scale.centred` μ = 0 and v is the mean square.
///
/// X, Y [rows, width]; γ, β `[width]`, or 1 and 0.
pub fn normalize(
    rows: Rows,
    x: &[f32],
    [gain, bias]: [Option<&[f32]>; 2],
    scale: Scale,
    y: &mut [f32],
    level: Level,
    pool: &dyn Pool,
) -> Result<()> {
    rows.check(&[x.len(), y.len()], &[gain, bias].map(|v| v.map_or(rows.width, <[f32]>::len)))?;
    let (px, py) = (Raw(x.as_ptr()), Raw(y.as_mut_ptr()));
    let [pg, pb] = [gain, bias].map(|v| Raw(v.map_or(std::ptr::null(), <[f32]>::as_ptr)));
    pool.run(rows.parts(), &|i| {
        let (x, gain, bias, y) = (px.get(), pg.get(), pb.get(), py.get());
        // SAFETY: the level is one this processor has; the lengths are checked; every part has rows of its own.
        unsafe { run(level, &Normalize { rows: rows.part(i), width: rows.width, scale, x, gain, bias, y }) };
    });
    Ok(())
}

/// x̄ = (g − mean g − x̂·mean(g·x̂))/σ with g = γȳ, and the part's Σ ȳx̂ and Σ ȳ.
struct NormalizeGradient {
    rows: Range<usize>,
    width: usize,
    scale: Scale,
    x: *const f32,
    dy: *const f32,
    gain: *const f32,
    dx: *mut f32,
    /// [2, width], zeros at first; null without γ.
    sums: *mut f32,
}

impl Job for NormalizeGradient {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let width = self.width;
        for row in self.rows.clone() {
            // SAFETY: the row is within X, Ȳ and X̄; γ, where it is not null, is as wide and `sums` twice that.
            unsafe {
                let (x, dy) = (self.x.add(row * width), self.dy.add(row * width));
                let dx = self.dx.add(row * width);
                let (mean, rstd) = moments::<L>(x, width, self.scale);
                let (mean_lanes, rstd_lanes) = (L::splat(mean), L::splat(rstd));
                let (mut total, mut along) = (L::splat(0.0), L::splat(0.0));
                let mut i = 0;
                while i < width {
                    let left = width - i;
                    let dy = some::<L>(dy.add(i), left);
                    let hat = some::<L>(x.add(i), left).sub(mean_lanes).mul(rstd_lanes);
                    let g = dy.mul(one_or::<L>(self.gain, i, left));
                    total = total.add(g);
                    along = g.mul_add(hat, along);
                    if !self.sums.is_null() {
                        let (dgain, dbias) = (self.sums.add(i), self.sums.add(width + i));
                        put(dy.mul_add(hat, some::<L>(dgain, left)), dgain, left);
                        put(dy.add(some::<L>(dbias, left)), dbias, left);
                    }
                    i += LANES;
                }
                let share = 1.0 / width as f32;
                let total = L::splat(if self.scale.centred { total.sum() * share } else { 0.0 });
                let along = L::splat(along.sum() * share);
                i = 0;
                while i < width {
                    let left = width - i;
                    let hat = some::<L>(x.add(i), left).sub(mean_lanes).mul(rstd_lanes);
                    let g = some::<L>(dy.add(i), left).mul(one_or::<L>(self.gain, i, left));
                    put(g.sub(total).sub(hat.mul(along)).mul(rstd_lanes), dx.add(i), left);
                    i += LANES;
                }
            }
        }
    }
}

/// The gradient of [`normalize`]: X̄ from Ȳ and, where there is γ, γ̄ = Σ Ȳx̂, β̄ = Σ Ȳ over the rows; moments are computed again.
pub fn normalize_gradient(
    rows: Rows,
    [x, dy]: [&[f32]; 2],
    gain: Option<(&[f32], [&mut [f32]; 2])>,
    scale: Scale,
    dx: &mut [f32],
    level: Level,
    pool: &dyn Pool,
) -> Result<()> {
    let vectors = gain.as_ref().map(|(gain, [dgain, dbias])| [gain.len(), dgain.len(), dbias.len()]);
    rows.check(&[x.len(), dy.len(), dx.len()], vectors.as_ref().map_or(&[], |v| v))?;
    let (parts, width) = (rows.parts(), rows.width);
    let mut sums = vec![0.0f32; if gain.is_some() { parts * 2 * width } else { 0 }];
    let pg = Raw(gain.as_ref().map_or(std::ptr::null(), |(gain, _)| gain.as_ptr()));
    let ps = Raw(if gain.is_some() { sums.as_mut_ptr() } else { std::ptr::null_mut() });
    let (px, pdy, pdx) = (Raw(x.as_ptr()), Raw(dy.as_ptr()), Raw(dx.as_mut_ptr()));
    pool.run(parts, &|i| {
        // SAFETY: as for the forward pass; every part has sums of its own.
        unsafe {
            let (x, dy, gain, dx, mut sums) = (px.get(), pdy.get(), pg.get(), pdx.get(), ps.get());
            if !sums.is_null() {
                sums = sums.add(i * 2 * width);
            }
            run(level, &NormalizeGradient { rows: rows.part(i), width, scale, x, dy, gain, dx, sums });
        }
    });
    let Some((_, [dgain, dbias])) = gain else { return Ok(()) };
    for (i, (dgain, dbias)) in dgain.iter_mut().zip(dbias).enumerate() {
        let total = |at: usize| sums[at..].iter().step_by(2 * width).map(|s| f64::from(*s)).sum::<f64>() as f32;
        (*dgain, *dbias) = (total(i), total(width + i));
    }
    Ok(())
}

/// y = e^(x − max x)/Σ
struct Softmax {
    rows: Range<usize>,
    width: usize,
    x: *const f32,
    y: *mut f32,
}

impl Job for Softmax {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let width = self.width;
        for row in self.rows.clone() {
            // SAFETY: the row is within X and Y.
            unsafe {
                let (x, y) = (self.x.add(row * width), self.y.add(row * width));
                let mut largest = f32::NEG_INFINITY;
                let mut i = 0;
                if width >= LANES {
                    let mut lanes = L::load(x);
                    i = LANES;
                    while i + LANES <= width {
                        lanes = lanes.max(L::load(x.add(i)));
                        i += LANES;
                    }
                    largest = lanes.largest();
                }
                while i < width {
                    largest = largest.max(*x.add(i));
                    i += 1;
                }
                // Nothing can be said of a row that is masked as a whole, or that has a NaN.
                if largest == f32::NEG_INFINITY || plane_sum::<L>(x, width).is_nan() {
                    std::slice::from_raw_parts_mut(y, width).fill(f32::NAN);
                    continue;
                }
                let (largest, smallest) = (L::splat(largest), L::splat(SMALLEST));
                i = 0;
                while i < width {
                    let left = width - i;
                    let below = some::<L>(x.add(i), left).sub(largest);
                    put(exp(below).keep_where_positive(below.sub(smallest)), y.add(i), left);
                    i += LANES;
                }
                let share = L::splat((1.0 / plane_sum::<L>(y, width)) as f32);
                i = 0;
                while i < width {
                    let left = width - i;
                    put(some::<L>(y.add(i), left).mul(share), y.add(i), left);
                    i += LANES;
                }
            }
        }
    }
}

/// Softmax of every row; X, Y [rows, width].
pub fn softmax(rows: Rows, x: &[f32], y: &mut [f32], level: Level, pool: &dyn Pool) -> Result<()> {
    rows.check(&[x.len(), y.len()], &[])?;
    let (px, py) = (Raw(x.as_ptr()), Raw(y.as_mut_ptr()));
    pool.run(rows.parts(), &|i| {
        // SAFETY: the level is one this processor has; the lengths are checked; every part has rows of its own.
        unsafe { run(level, &Softmax { rows: rows.part(i), width: rows.width, x: px.get(), y: py.get() }) };
    });
    Ok(())
}

/// x̄ = y(ȳ − Σ ȳy)
struct SoftmaxGradient {
    rows: Range<usize>,
    width: usize,
    y: *const f32,
    dy: *const f32,
    dx: *mut f32,
}

impl Job for SoftmaxGradient {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let width = self.width;
        for row in self.rows.clone() {
            // SAFETY: the row is within the tensors.
            unsafe {
                let (y, dy, dx) = (self.y.add(row * width), self.dy.add(row * width), self.dx.add(row * width));
                let mut total = L::splat(0.0);
                let mut i = 0;
                while i < width {
                    let left = width - i;
                    total = some::<L>(y.add(i), left).mul_add(some::<L>(dy.add(i), left), total);
                    i += LANES;
                }
                let total = L::splat(total.sum());
                i = 0;
                while i < width {
                    let left = width - i;
                    put(some::<L>(dy.add(i), left).sub(total).mul(some::<L>(y.add(i), left)), dx.add(i), left);
                    i += LANES;
                }
            }
        }
    }
}

/// The gradient of [`softmax`] from its output: X̄ = Y(Ȳ − Σ ȲY); all [rows, width].
pub fn softmax_gradient(
    rows: Rows,
    y: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    level: Level,
    pool: &dyn Pool,
) -> Result<()> {
    rows.check(&[y.len(), dy.len(), dx.len()], &[])?;
    let (py, pdy, pdx) = (Raw(y.as_ptr()), Raw(dy.as_ptr()), Raw(dx.as_mut_ptr()));
    pool.run(rows.parts(), &|i| {
        let (y, dy, dx) = (py.get(), pdy.get(), pdx.get());
        // SAFETY: as above.
        unsafe { run(level, &SoftmaxGradient { rows: rows.part(i), width: rows.width, y, dy, dx }) };
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Backwards, error, numbers};
    use super::*;

    const SHAPES: [(usize, usize); 8] = [(1, 1), (3, 2), (5, 16), (7, 17), (40, 31), (64, 384), (301, 50), (2, 5000)];

    fn wide(v: &[f32]) -> Vec<f64> {
        v.iter().map(|x| f64::from(*x)).collect()
    }

    #[test]
    fn normalizations_are_their_definition() {
        for (rows, width) in SHAPES {
            for centred in [true, false] {
                let scale = Scale { centred, epsilon: 1e-5 };
                let n = rows * width;
                let x: Vec<f32> = numbers(1, n).iter().map(|v| v * 3.0 + 1.5).collect();
                let (dy, gain, bias) = (numbers(2, n), numbers(3, width), numbers(4, width));
                let (mut y, mut dx) = (vec![0.0; n], vec![0.0; n]);
                let (mut dgain, mut dbias) = (vec![0.0; width], vec![0.0; width]);
                let (mut want_y, mut want_dx) = (vec![0.0; n], vec![0.0; n]);
                let (mut want_dgain, mut want_dbias) = (vec![0.0; width], vec![0.0; width]);
                for r in 0..rows {
                    let (x, dy) = (wide(&x[r * width..][..width]), wide(&dy[r * width..][..width]));
                    let mean = |v: &[f64]| v.iter().sum::<f64>() / width as f64;
                    let centre = if centred { mean(&x) } else { 0.0 };
                    let square: Vec<f64> = x.iter().map(|v| (v - centre).powi(2)).collect();
                    let rstd = 1.0 / (mean(&square) + f64::from(scale.epsilon)).sqrt();
                    let hat: Vec<f64> = x.iter().map(|v| (v - centre) * rstd).collect();
                    let g: Vec<f64> = dy.iter().zip(&gain).map(|(d, w)| d * f64::from(*w)).collect();
                    let along = mean(&g.iter().zip(&hat).map(|(g, h)| g * h).collect::<Vec<_>>());
                    let total = if centred { mean(&g) } else { 0.0 };
                    for i in 0..width {
                        want_y[r * width + i] = hat[i] * f64::from(gain[i]) + f64::from(bias[i]);
                        want_dx[r * width + i] = (g[i] - total - hat[i] * along) * rstd;
                        want_dgain[i] += dy[i] * hat[i];
                        want_dbias[i] += dy[i];
                    }
                }
                for level in Level::available() {
                    let all = Rows { rows, width };
                    normalize(all, &x, [Some(&gain), Some(&bias)], scale, &mut y, level, &Backwards).unwrap();
                    let vectors = Some((gain.as_slice(), [dgain.as_mut_slice(), &mut dbias]));
                    normalize_gradient(all, [&x, &dy], vectors, scale, &mut dx, level, &Backwards).unwrap();
                    let at = format!("{level:?}, {rows} × {width}, centred {centred}");
                    assert!(error(&y, &want_y) < 2e-6, "{at}: Y");
                    // A row of one is its own mean: its gradient is nothing but rounding.
                    if width > 2 {
                        assert!(error(&dx, &want_dx) < 1e-5, "{at}: X̄ {}", error(&dx, &want_dx));
                    }
                    if width > 1 {
                        assert!(error(&dgain, &want_dgain) < 1e-5, "{at}: γ̄");
                    }
                    assert!(error(&dbias, &want_dbias) < 1e-5, "{at}: β̄");

                    // Without γ and β: as with ones and zeros.
                    let (ones, zeros) = (vec![1.0; width], vec![0.0; width]);
                    let both = |gain: Option<&[f32]>, bias: Option<&[f32]>| {
                        let (mut y, mut dx) = (vec![0.0; n], vec![0.0; n]);
                        let (mut dgain, mut dbias) = (vec![0.0; width], vec![0.0; width]);
                        normalize(all, &x, [gain, bias], scale, &mut y, level, &Backwards).unwrap();
                        let vectors = gain.map(|gain| (gain, [dgain.as_mut_slice(), &mut dbias]));
                        normalize_gradient(all, [&x, &dy], vectors, scale, &mut dx, level, &Backwards).unwrap();
                        (y, dx)
                    };
                    assert!(both(None, None) == both(Some(&ones), Some(&zeros)), "{at}");
                }
            }
        }
    }

    #[test]
    fn softmax_is_its_definition() {
        for (rows, width) in SHAPES {
            let n = rows * width;
            let x: Vec<f32> = numbers(1, n).iter().map(|v| v * 5.0).collect();
            let dy = numbers(2, n);
            let (mut want_y, mut want_dx) = (Vec::new(), Vec::new());
            for r in 0..rows {
                let (x, dy) = (wide(&x[r * width..][..width]), wide(&dy[r * width..][..width]));
                let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let e: Vec<f64> = x.iter().map(|v| (v - largest).exp()).collect();
                let total: f64 = e.iter().sum();
                let y: Vec<f64> = e.iter().map(|v| v / total).collect();
                let along: f64 = y.iter().zip(&dy).map(|(y, d)| y * d).sum();
                want_dx.extend(y.iter().zip(&dy).map(|(y, d)| y * (d - along)));
                want_y.extend(y);
            }
            for level in Level::available() {
                let all = Rows { rows, width };
                let (mut y, mut dx) = (vec![0.0; n], vec![0.0; n]);
                softmax(all, &x, &mut y, level, &Backwards).unwrap();
                softmax_gradient(all, &y, &dy, &mut dx, level, &Backwards).unwrap();
                assert!(error(&y, &want_y) < 2e-6, "{level:?}, {rows} × {width}: Y {}", error(&y, &want_y));
                if width > 1 {
                    assert!(error(&dx, &want_dx) < 5e-6, "{level:?}, {rows} × {width}: X̄ {}", error(&dx, &want_dx));
                }
            }
        }
    }

    #[test]
    fn masked_places_are_zero_and_masked_rows_not_a_number() {
        let minus = f32::NEG_INFINITY;
        for level in Level::available() {
            for width in [3, 20] {
                let mut x = vec![minus; 3 * width];
                x[width + 1] = -1e30;
                x[width + 2] = -1e30;
                x[2 * width] = f32::NAN;
                x[2 * width + 1] = 1.0;
                let mut y = vec![0.0; 3 * width];
                softmax(Rows { rows: 3, width }, &x, &mut y, level, &Backwards).unwrap();
                assert!(y[..width].iter().chain(&y[2 * width..]).all(|v| v.is_nan()), "{level:?}: {y:?}");
                let want: Vec<f32> = (0..width).map(|i| if i == 1 || i == 2 { 0.5 } else { 0.0 }).collect();
                assert_eq!(y[width..2 * width], want, "{level:?}");
            }
        }
    }
}
