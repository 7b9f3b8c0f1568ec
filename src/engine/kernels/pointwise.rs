//! Activations with an exponential, and their gradients: one pass over memory each.

use super::math::{normal, sigmoid};
use super::norm::{put, some};
use super::simd::{Job, LANES, Lanes, Level, run};
use super::{Pool, Raw};
use crate::error::{Error, Result};
use std::ops::Range;

/// An activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// y = x·σ(x), also called Swish.
    Silu,
    /// y = x·Φ(x), Φ the standard normal distribution.
    Gelu,
}

/// Elements of a part.
const PART: usize = 16384;

struct Apply {
    activation: Activation,
    range: Range<usize>,
    x: *const f32,
    /// Ȳ for the gradient, null forward.
    dy: *const f32,
    out: *mut f32,
}

impl Job for Apply {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let mut i = self.range.start;
        while i < self.range.end {
            let left = self.range.end - i;
            // SAFETY: the range is within the tensors.
            unsafe {
                let x = some::<L>(self.x.add(i), left);
                // Y/x, and what x times its slope adds to it.
                let (share, slope) = match self.activation {
                    Activation::Silu => {
                        let s = sigmoid(x);
                        (s, s.mul(L::splat(1.0).sub(s)))
                    }
                    Activation::Gelu => normal(x),
                };
                let out = if self.dy.is_null() {
                    x.mul(share)
                } else {
                    some::<L>(self.dy.add(i), left).mul(x.mul_add(slope, share))
                };
                put(out, self.out.add(i), left);
            }
            i += LANES;
        }
    }
}

fn apply(
    activation: Activation,
    x: &[f32],
    dy: Option<&[f32]>,
    out: &mut [f32],
    level: Level,
    pool: &dyn Pool,
) -> Result<()> {
    let n = x.len();
    if out.len() != n || dy.is_some_and(|dy| dy.len() != n) {
        return Err(Error::new(format!("tensors of {n} and {} elements", out.len())));
    }
    let (px, po) = (Raw(x.as_ptr()), Raw(out.as_mut_ptr()));
    let pdy = Raw(dy.map_or(std::ptr::null(), <[f32]>::as_ptr));
    pool.run(n.div_ceil(PART), &|i| {
        let range = i * PART..((i + 1) * PART).min(n);
        let (x, dy, out) = (px.get(), pdy.get(), po.get());
        // SAFETY: the level is one this processor has; the lengths are checked; every part has elements of its own.
        unsafe { run(level, &Apply { activation, range, x, dy, out }) };
    });
    Ok(())
}

/// Y from X, of any one shape.
pub fn forward(activation: Activation, x: &[f32], y: &mut [f32], level: Level, pool: &dyn Pool) -> Result<()> {
    apply(activation, x, None, y, level, pool)
}

/// X̄ from X and Ȳ: Ȳ·(Y/X + X·slope), with slope σ(1 − σ) or the normal density.
pub fn gradient(
    activation: Activation,
    x: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    level: Level,
    pool: &dyn Pool,
) -> Result<()> {
    apply(activation, x, Some(dy), dx, level, pool)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Backwards, numbers};
    use super::*;

    /// Φ by the series of erf, which converges for the arguments here.
    fn phi(x: f64) -> f64 {
        let z = x / std::f64::consts::SQRT_2;
        let (mut term, mut sum) = (z, z);
        for n in 1..400 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        0.5 + sum / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn activations_are_their_definition() {
        let n = PART + 33;
        let x: Vec<f32> = numbers(1, n).iter().map(|v| v * 5.0).collect();
        let dy = numbers(2, n);
        for activation in [Activation::Silu, Activation::Gelu] {
            let of = |x: f64| match activation {
                Activation::Silu => {
                    let s = 1.0 / (1.0 + (-x).exp());
                    (x * s, s + x * s * (1.0 - s))
                }
                Activation::Gelu => {
                    let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
                    (x * phi(x), phi(x) + x * density)
                }
            };
            for level in Level::available() {
                let (mut y, mut dx) = (vec![0.0; n], vec![0.0; n]);
                forward(activation, &x, &mut y, level, &Backwards).unwrap();
                gradient(activation, &x, &dy, &mut dx, level, &Backwards).unwrap();
                for i in 0..n {
                    let (want, slope) = of(f64::from(x[i]));
                    let close = |got: f32, want: f64| (f64::from(got) - want).abs() < 1e-6 * want.abs().max(1.0);
                    assert!(close(y[i], want), "{level:?} {activation:?} at {}: {} for {want}", x[i], y[i]);
                    let want = slope * f64::from(dy[i]);
                    assert!(close(dx[i], want), "{level:?} {activation:?}' at {}: {} for {want}", x[i], dx[i]);
                }
            }
        }
    }

    #[test]
    fn large_and_missing_numbers_are_what_they_should_be() {
        let x = [1000.0, -1000.0, f32::NAN, f32::INFINITY, 88.5, -88.5];
        for activation in [Activation::Silu, Activation::Gelu] {
            for level in Level::available() {
                let (mut y, mut dx) = ([0.0; 6], [0.0; 6]);
                forward(activation, &x, &mut y, level, &Backwards).unwrap();
                gradient(activation, &x, &[1.0; 6], &mut dx, level, &Backwards).unwrap();
                assert_eq!(
                    (y[0], dx[0], y[3], y[4], dx[4]),
                    (1000.0, 1.0, f32::INFINITY, 88.5, 1.0),
                    "{level:?} {activation:?}"
                );
                assert!(y[2].is_nan() && dx[2].is_nan(), "{level:?} {activation:?}");
                for v in [y[1], dx[1], y[5], dx[5]] {
                    assert!(v.abs() < 1e-30, "{level:?} {activation:?}: {v}");
                }
            }
        }
    }
}
