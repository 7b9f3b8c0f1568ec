//! BatchNormalization on the statistics of the batch, with an optional addition and Relu behind it, and its gradient.
//!
//! X [N,C,…] is walked sample by sample, in groups of samples whose planes of one channel stay in the nearest cache between the
//! two passes over them. Sums run in f32 over a plane and in f64 from there. Variances of groups are merged as in Chan, Golub
//! & LeVeque 1983, so that no square of a mean is ever subtracted.
//!
//! How the work is divided depends on the shapes alone, so results do not depend on the number of threads.

use super::simd::{Job, LANES, Lanes, Level, run};
use super::{Pool, Raw};
use crate::error::{Error, Result};
use std::ops::Range;

/// X [N,C,plane].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planes {
    /// Samples.
    pub n: usize,
    /// Channels.
    pub c: usize,
    /// Elements of one channel of one sample.
    pub plane: usize,
}

/// What follows the normalization.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum After {
    /// Nothing, or an addition only.
    Nothing,
    /// Relu, or with a finite ceiling a Clip from 0 on.
    Relu {
        /// The greatest output.
        ceiling: f32,
    },
}

impl After {
    fn ceiling(self) -> f32 {
        match self {
            Self::Nothing => f32::INFINITY,
            Self::Relu { ceiling } => ceiling,
        }
    }
}

/// Parts the samples are divided into.
const PARTS: usize = 16;
/// Numbers of one channel that are read twice in a row.
const GROUP: usize = 8192;

impl Planes {
    fn len(self) -> usize {
        self.n * self.c * self.plane
    }

    fn parts(self) -> usize {
        PARTS.min(self.n)
    }

    fn part(self, i: usize) -> Range<usize> {
        self.n * i / self.parts()..self.n * (i + 1) / self.parts()
    }

    fn check(self, tensors: &[usize], vectors: &[usize]) -> Result<()> {
        if self.len() > 0 && tensors.iter().all(|t| *t == self.len()) && vectors.iter().all(|v| *v == self.c) {
            return Ok(());
        }
        Err(Error::new(format!("tensors of {tensors:?} and vectors of {vectors:?} elements do not fit {self:?}")))
    }
}

/// For every channel of some samples: mean, sum of squared distances from it.
struct Moments {
    planes: Planes,
    samples: Range<usize>,
    x: *const f32,
    /// [C, 2]
    out: *mut f64,
}

impl Job for Moments {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let Planes { c, plane, .. } = self.planes;
        let together = (GROUP / plane).max(1);
        let mut first = self.samples.start;
        let mut seen = 0.0;
        while first < self.samples.end {
            let last = (first + together).min(self.samples.end);
            let count = ((last - first) * plane) as f64;
            for channel in 0..c {
                // SAFETY: samples and channels are within X; `out` has a pair for every channel.
                unsafe {
                    let mut sum = 0.0;
                    for i in first..last {
                        sum += plane_sum::<L>(self.x.add((i * c + channel) * plane), plane);
                    }
                    let mean = sum / count;
                    let mut square = 0.0;
                    for i in first..last {
                        square += plane_square::<L>(self.x.add((i * c + channel) * plane), plane, mean as f32);
                    }
                    // The mean as the sum of squares used it.
                    let rest = mean - f64::from(mean as f32);
                    square -= count * rest * rest;
                    let out = std::slice::from_raw_parts_mut(self.out.add(2 * channel), 2);
                    merge(out, seen, [mean, square], count);
                }
            }
            seen += count;
            first = last;
        }
    }
}

/// Adds `count` numbers to `seen` ones: each has a mean and a sum of squared distances from it.
#[inline(always)]
fn merge(all: &mut [f64], seen: f64, [mean, square]: [f64; 2], count: f64) {
    let (difference, total) = (mean - all[0], seen + count);
    all[0] += difference * count / total;
    all[1] += square + difference * difference * seen * count / total;
}

#[inline(always)]
pub(super) unsafe fn plane_sum<L: Lanes>(x: *const f32, n: usize) -> f64 {
    unsafe {
        let mut sums = [L::splat(0.0); 4];
        let mut i = 0;
        while i + 4 * LANES <= n {
            for (u, sum) in sums.iter_mut().enumerate() {
                *sum = sum.add(L::load(x.add(i + u * LANES)));
            }
            i += 4 * LANES;
        }
        while i < n {
            sums[0] = sums[0].add(some::<L>(x.add(i), n - i));
            i += LANES;
        }
        f64::from(sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum())
    }
}

#[inline(always)]
pub(super) unsafe fn plane_square<L: Lanes>(x: *const f32, n: usize, mean: f32) -> f64 {
    unsafe {
        let (mut sums, mean_lanes) = ([L::splat(0.0); 4], L::splat(mean));
        let mut i = 0;
        while i + 4 * LANES <= n {
            for (u, sum) in sums.iter_mut().enumerate() {
                let d = L::load(x.add(i + u * LANES)).sub(mean_lanes);
                *sum = d.mul_add(d, *sum);
            }
            i += 4 * LANES;
        }
        while i + LANES <= n {
            let d = L::load(x.add(i)).sub(mean_lanes);
            sums[0] = d.mul_add(d, sums[0]);
            i += LANES;
        }
        let mut total = f64::from(sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum());
        while i < n {
            let d = *x.add(i) - mean;
            total += f64::from(d * d);
            i += 1;
        }
        total
    }
}

/// A vector, or the first lanes of one where fewer are left.
#[inline(always)]
pub(super) unsafe fn some<L: Lanes>(p: *const f32, left: usize) -> L {
    unsafe { if left >= LANES { L::load(p) } else { L::load_first(p, left) } }
}

#[inline(always)]
pub(super) unsafe fn put<L: Lanes>(v: L, p: *mut f32, left: usize) {
    unsafe {
        if left >= LANES {
            v.store(p);
        } else {
            v.store_first(p, left);
        }
    }
}

/// y = min(relu, ceiling)?(a·(x − mean) + bias + residual?)
struct Apply {
    planes: Planes,
    samples: Range<usize>,
    after: After,
    x: *const f32,
    residual: *const f32,
    y: *mut f32,
    /// For every channel: mean, a, bias.
    coefficients: *const [f32; 3],
}

impl Job for Apply {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let Planes { c, plane, .. } = self.planes;
        for sample in self.samples.clone() {
            for channel in 0..c {
                // SAFETY: within the tensors.
                unsafe {
                    let [mean, a, bias] = *self.coefficients.add(channel);
                    let (mean, a, bias) = (L::splat(mean), L::splat(a), L::splat(bias));
                    let (start, mut i) = ((sample * c + channel) * plane, 0);
                    while i < plane {
                        let (at, left) = (start + i, plane - i);
                        let mut v = normalize(some::<L>(self.x.add(at), left), mean, a, bias);
                        if !self.residual.is_null() {
                            v = v.add(some::<L>(self.residual.add(at), left));
                        }
                        if let After::Relu { ceiling } = self.after {
                            v = v.relu().min(L::splat(ceiling));
                        }
                        put(v, self.y.add(at), left);
                        i += LANES;
                    }
                }
            }
        }
    }
}

/// The same arithmetic forward and, for the sign of the output, backward.
#[inline(always)]
unsafe fn normalize<L: Lanes>(x: L, mean: L, a: L, bias: L) -> L {
    unsafe { x.sub(mean).mul_add(a, bias) }
}

fn coefficients(mean: &[f32], variance: &[f32], gain: &[f32], bias: &[f32], epsilon: f32) -> Vec<[f32; 3]> {
    let a = |c: usize| (f64::from(gain[c]) / (f64::from(variance[c]) + f64::from(epsilon)).sqrt()) as f32;
    (0..mean.len()).map(|c| [mean[c], a(c), bias[c]]).collect()
}

/// Y = relu?(γ(X − μ)/√(v + ε) + β + residual?) with μ and v the mean and biased variance of each channel.
///
/// X, residual and Y [N,C,plane]; γ, β, μ, v `[C]`.
#[allow(clippy::too_many_arguments)]
pub fn forward(
    planes: Planes,
    x: &[f32],
    [gain, bias]: [&[f32]; 2],
    residual: Option<&[f32]>,
    epsilon: f32,
    after: After,
    y: &mut [f32],
    [mean, variance]: [&mut [f32]; 2],
    level: Level,
    pool: &dyn Pool,
) -> Result<()> {
    let other = residual.map_or(x.len(), <[f32]>::len);
    planes.check(&[x.len(), y.len(), other], &[gain.len(), bias.len(), mean.len(), variance.len()])?;
    let (parts, c) = (planes.parts(), planes.c);
    let mut moments = vec![0.0; parts * 2 * c];
    let (px, pm) = (Raw(x.as_ptr()), Raw(moments.as_mut_ptr()));
    pool.run(parts, &|i| {
        // SAFETY: the level is one this processor has; the lengths are checked; every part has moments of its own.
        unsafe {
            let out = pm.get().add(i * 2 * c);
            run(level, &Moments { planes, samples: planes.part(i), x: px.get(), out });
        }
    });
    for channel in 0..c {
        let (mut all, mut seen) = ([0.0; 2], 0.0);
        for i in 0..parts {
            let count = (planes.part(i).len() * planes.plane) as f64;
            let part = &moments[(i * c + channel) * 2..];
            merge(&mut all, seen, [part[0], part[1]], count);
            seen += count;
        }
        mean[channel] = all[0] as f32;
        variance[channel] = (all[1] / seen) as f32;
    }
    apply(planes, x, [gain, bias], [mean, variance], residual, epsilon, after, y, level, pool)
}

/// Y of [`forward`] for a mean and variance that are known.
#[allow(clippy::too_many_arguments)]
pub fn apply(
    planes: Planes,
    x: &[f32],
    [gain, bias]: [&[f32]; 2],
    [mean, variance]: [&[f32]; 2],
    residual: Option<&[f32]>,
    epsilon: f32,
    after: After,
    y: &mut [f32],
    level: Level,
    pool: &dyn Pool,
) -> Result<()> {
    let other = residual.map_or(x.len(), <[f32]>::len);
    planes.check(&[x.len(), y.len(), other], &[gain.len(), bias.len(), mean.len(), variance.len()])?;
    let coefficients = coefficients(mean, variance, gain, bias, epsilon);
    let (px, pc, py) = (Raw(x.as_ptr()), Raw(coefficients.as_ptr()), Raw(y.as_mut_ptr()));
    let pr = Raw(residual.map_or(std::ptr::null(), <[f32]>::as_ptr));
    pool.run(planes.parts(), &|i| {
        let samples = planes.part(i);
        // SAFETY: the level is one this processor has; the lengths are checked; every part has samples of its own.
        unsafe {
            let (x, residual, y, coefficients) = (px.get(), pr.get(), py.get(), pc.get());
            run(level, &Apply { planes, samples, after, x, residual, y, coefficients });
        }
    });
    Ok(())
}

/// Where the gradient of the Relu, or Clip, is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mask {
    /// There is none.
    None,
    /// Where the output, computed again, is not between 0 and the ceiling.
    Again,
    /// Where the output that was kept is not.
    Kept,
}

/// Ȳ behind the Relu.
#[inline(always)]
unsafe fn masked<L: Lanes>(
    (mask, ceiling): (Mask, L),
    dy: L,
    y: *const f32,
    x: L,
    [mean, a, bias]: [L; 3],
    left: usize,
) -> L {
    unsafe {
        let y = match mask {
            Mask::None => return dy,
            Mask::Again => normalize(x, mean, a, bias),
            Mask::Kept => some::<L>(y, left),
        };
        dy.keep_where_positive(y.min(ceiling.sub(y)))
    }
}

/// For every channel of some samples: Σ Ȳ and Σ Ȳ(X − μ).
struct Sums {
    planes: Planes,
    samples: Range<usize>,
    mask: Mask,
    ceiling: f32,
    x: *const f32,
    dy: *const f32,
    y: *const f32,
    coefficients: *const [f32; 3],
    out: *mut f64,
}

impl Job for Sums {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let Planes { c, plane, .. } = self.planes;
        // SAFETY: the level is this job's.
        let ceiling = unsafe { L::splat(self.ceiling) };
        for sample in self.samples.clone() {
            for channel in 0..c {
                // SAFETY: within the tensors; `out` has a pair for every channel.
                unsafe {
                    let known = (*self.coefficients.add(channel)).map(|v| L::splat(v));
                    let (mut sums, mut moments) = ([L::splat(0.0); 2], [L::splat(0.0); 2]);
                    let (start, mut i) = ((sample * c + channel) * plane, 0);
                    macro_rules! one {
                        ($u:literal) => {
                            let (at, left) = (start + i, plane - i);
                            let x = some::<L>(self.x.add(at), left);
                            // What lies behind the end counts 0.
                            let dy = some::<L>(self.dy.add(at), left);
                            let dy = masked((self.mask, ceiling), dy, self.y.add(at), x, known, left);
                            sums[$u] = sums[$u].add(dy);
                            moments[$u] = dy.mul_add(x.sub(known[0]), moments[$u]);
                            i += LANES;
                        };
                    }
                    while i + 2 * LANES <= plane {
                        one!(0);
                        one!(1);
                    }
                    while i < plane {
                        one!(0);
                    }
                    *self.out.add(2 * channel) += f64::from(sums[0].add(sums[1]).sum());
                    *self.out.add(2 * channel + 1) += f64::from(moments[0].add(moments[1]).sum());
                }
            }
        }
    }
}

/// X̄ = a·Ȳ + k·(X − μ) + l, and the cotangent of the residual, Ȳ behind the Relu.
struct Spread {
    planes: Planes,
    samples: Range<usize>,
    mask: Mask,
    ceiling: f32,
    x: *const f32,
    dy: *const f32,
    y: *const f32,
    coefficients: *const [f32; 3],
    /// For every channel: k, l.
    slopes: *const [f32; 2],
    dx: *mut f32,
    residual: *mut f32,
}

impl Job for Spread {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let Planes { c, plane, .. } = self.planes;
        // SAFETY: the level is this job's.
        let ceiling = unsafe { L::splat(self.ceiling) };
        for sample in self.samples.clone() {
            for channel in 0..c {
                // SAFETY: within the tensors.
                unsafe {
                    let [mean, a, bias] = *self.coefficients.add(channel);
                    let known = [L::splat(mean), L::splat(a), L::splat(bias)];
                    let [k, l] = *self.slopes.add(channel);
                    let (k, l) = (L::splat(k), L::splat(l));
                    let (start, mut i) = ((sample * c + channel) * plane, 0);
                    while i < plane {
                        let (at, left) = (start + i, plane - i);
                        let x = some::<L>(self.x.add(at), left);
                        let dy = masked(
                            (self.mask, ceiling),
                            some::<L>(self.dy.add(at), left),
                            self.y.add(at),
                            x,
                            known,
                            left,
                        );
                        if !self.residual.is_null() {
                            put(dy, self.residual.add(at), left);
                        }
                        let dx = dy.mul_add(known[1], x.sub(known[0]).mul_add(k, l));
                        put(dx, self.dx.add(at), left);
                        i += LANES;
                    }
                }
            }
        }
    }
}

/// What [`gradient`] reads.
pub struct Known<'a> {
    /// X.
    pub x: &'a [f32],
    /// Ȳ.
    pub dy: &'a [f32],
    /// Y, for a Relu behind an addition.
    pub y: Option<&'a [f32]>,
    /// γ.
    pub gain: &'a [f32],
    /// β.
    pub bias: &'a [f32],
    /// μ.
    pub mean: &'a [f32],
    /// v.
    pub variance: &'a [f32],
    /// ε.
    pub epsilon: f32,
    /// What followed.
    pub after: After,
}

/// X̄, γ̄ = Σ Ȳx̂, β̄ = Σ Ȳ and the cotangent of the residual, with Ȳ behind the Relu: X̄ = γ(Ȳ − β̄/n − x̂γ̄/n)/√(v + ε).
///
/// X, Y, Ȳ, X̄ and the residual's [N,C,plane], the rest `[C]`.
pub fn gradient(
    planes: Planes,
    known: &Known<'_>,
    dx: &mut [f32],
    [dgain, dbias]: [&mut [f32]; 2],
    residual: Option<&mut [f32]>,
    level: Level,
    pool: &dyn Pool,
) -> Result<()> {
    let Known { x, dy, y, gain, bias, mean, variance, epsilon, after } = *known;
    let lengths = [x.len(), dy.len(), dx.len(), y.map_or(x.len(), <[f32]>::len)];
    planes.check(&lengths, &[gain.len(), bias.len(), mean.len(), variance.len(), dgain.len(), dbias.len()])?;
    planes.check(&[residual.as_ref().map_or(x.len(), |r| r.len())], &[])?;
    let mask = match (after, y) {
        (After::Nothing, _) => Mask::None,
        (After::Relu { .. }, None) => Mask::Again,
        (After::Relu { .. }, Some(_)) => Mask::Kept,
    };
    let (parts, c, ceiling) = (planes.parts(), planes.c, after.ceiling());
    let coefficients = coefficients(mean, variance, gain, bias, epsilon);
    let mut sums = vec![0.0; parts * 2 * c];
    let (px, pdy, py) = (Raw(x.as_ptr()), Raw(dy.as_ptr()), Raw(y.map_or(x.as_ptr(), <[f32]>::as_ptr)));
    let (pc, ps) = (Raw(coefficients.as_ptr()), Raw(sums.as_mut_ptr()));
    pool.run(parts, &|i| {
        let samples = planes.part(i);
        // SAFETY: as in `forward`.
        unsafe {
            let (x, dy, y, coefficients) = (px.get(), pdy.get(), py.get(), pc.get());
            let out = ps.get().add(i * 2 * c);
            run(level, &Sums { planes, samples, mask, ceiling, x, dy, y, coefficients, out });
        }
    });
    let n = (planes.n * planes.plane) as f64;
    let mut slopes = Vec::with_capacity(c);
    for channel in 0..c {
        let total = |k: usize| (0..parts).map(|i| sums[(i * c + channel) * 2 + k]).sum::<f64>();
        let (sum, moment) = (total(0), total(1));
        let rstd = 1.0 / (f64::from(variance[channel]) + f64::from(epsilon)).sqrt();
        let slope = f64::from(gain[channel]) * rstd;
        dgain[channel] = (moment * rstd) as f32;
        dbias[channel] = sum as f32;
        slopes.push([(-slope * rstd * rstd * moment / n) as f32, (-slope * sum / n) as f32]);
    }
    let (pk, pdx) = (Raw(slopes.as_ptr()), Raw(dx.as_mut_ptr()));
    let pr = Raw(residual.map_or(std::ptr::null_mut(), <[f32]>::as_mut_ptr));
    pool.run(parts, &|i| {
        let samples = planes.part(i);
        // SAFETY: as in `forward`.
        unsafe {
            let (x, dy, y, coefficients) = (px.get(), pdy.get(), py.get(), pc.get());
            let (slopes, dx, residual) = (pk.get(), pdx.get(), pr.get());
            run(level, &Spread { planes, samples, mask, ceiling, x, dy, y, coefficients, slopes, dx, residual });
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Backwards, error, numbers};
    use super::*;

    const EPSILON: f32 = 1e-3;

    /// Every level against the definition, in f64.
    fn agrees(planes: Planes, after: After, added: bool) {
        let Planes { n, c, plane } = planes;
        // A mean far from 0, for which squares must not be subtracted.
        let x: Vec<f32> = numbers(1, planes.len()).iter().map(|v| v + 30.0).collect();
        let (dy, other) = (numbers(2, x.len()), numbers(3, x.len()));
        let (gain, bias) = (numbers(4, c), numbers(5, c));
        let residual = added.then_some(other.as_slice());
        let at = |channel: usize| (0..n * plane).map(move |i| (i / plane * c + channel) * plane + i % plane);
        let (mut mean, mut variance) = (vec![0.0; c], vec![0.0; c]);
        let (mut y, mut masked, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; x.len()]);
        let (mut dgain, mut dbias) = (vec![0.0; c], vec![0.0; c]);
        let count = (n * plane) as f64;
        for k in 0..c {
            mean[k] = at(k).map(|i| f64::from(x[i])).sum::<f64>() / count;
            variance[k] = at(k).map(|i| (f64::from(x[i]) - mean[k]).powi(2)).sum::<f64>() / count;
            let rstd = 1.0 / (variance[k] + f64::from(EPSILON)).sqrt();
            let hat = |i: usize| (f64::from(x[i]) - mean[k]) * rstd;
            for i in at(k) {
                let v = f64::from(gain[k]) * hat(i) + f64::from(bias[k]) + residual.map_or(0.0, |r| f64::from(r[i]));
                let (low, high) = match after {
                    After::Nothing => (f64::NEG_INFINITY, f64::INFINITY),
                    After::Relu { ceiling } => (0.0, f64::from(ceiling)),
                };
                y[i] = v.clamp(low, high);
                masked[i] = if low < v && v < high { f64::from(dy[i]) } else { 0.0 };
            }
            dbias[k] = at(k).map(|i| masked[i]).sum();
            dgain[k] = at(k).map(|i| masked[i] * hat(i)).sum();
            for i in at(k) {
                dx[i] = f64::from(gain[k]) * rstd * (masked[i] - dbias[k] / count - hat(i) * dgain[k] / count);
            }
        }
        for level in Level::available() {
            let mut got = vec![f32::NAN; x.len()];
            let (mut mu, mut v) = (vec![f32::NAN; c], vec![f32::NAN; c]);
            let stats = [mu.as_mut_slice(), v.as_mut_slice()];
            forward(planes, &x, [&gain, &bias], residual, EPSILON, after, &mut got, stats, level, &Backwards)
                .expect("fits");
            let context = format!("{level:?} {planes:?} {after:?} {added}");
            assert!(error(&got, &y) < 2e-5, "Y {} {context}", error(&got, &y));
            assert!(error(&mu, &mean) < 1e-6, "mean {} {context}", error(&mu, &mean));
            assert!(error(&v, &variance) < 1e-5, "variance {} {context}", error(&v, &variance));
            let kept = got.clone();
            let known = Known {
                x: &x,
                dy: &dy,
                y: added.then_some(kept.as_slice()),
                gain: &gain,
                bias: &bias,
                mean: &mu,
                variance: &v,
                epsilon: EPSILON,
                after,
            };
            let (mut dg, mut db, mut dr) = (vec![f32::NAN; c], vec![f32::NAN; c], vec![f32::NAN; x.len()]);
            let gains = [dg.as_mut_slice(), db.as_mut_slice()];
            gradient(planes, &known, &mut got, gains, added.then_some(&mut dr), level, &Backwards).expect("fits");
            for (name, got, want) in [("X", &got, &dx), ("gain", &dg, &dgain), ("bias", &db, &dbias)] {
                assert!(error(got, want) < 5e-5, "{name} {} {context}", error(got, want));
            }
            if added {
                assert!(error(&dr, &masked) < 1e-7, "residual {} {context}", error(&dr, &masked));
            }
        }
    }

    #[test]
    fn normalizations_agree_with_the_definition() {
        for (n, c, plane) in [(4, 3, 64), (20, 5, 9), (1, 2, 257), (33, 1, 16), (2, 4, 50), (3, 2, 1)] {
            for after in [After::Nothing, After::Relu { ceiling: f32::INFINITY }, After::Relu { ceiling: 0.4 }] {
                for added in [false, true] {
                    agrees(Planes { n, c, plane }, after, added);
                }
            }
        }
    }
}
