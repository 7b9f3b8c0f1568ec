//! Functions of single numbers over sixteen lanes.

use super::simd::Lanes;

/// Below, e^x is taken for that of this number, whose power is about the smallest normal one.
pub const SMALLEST: f32 = -87.3;
/// Above, likewise.
const LARGEST: f32 = 88.0;

/// e^x with a relative error below 2·10⁻⁷ between e^−87.3 and e^88, which the rest is taken for; NaN stays NaN.
///
/// x = n·ln 2 + r, and e^r by the polynomial of Cephes' `expf` (Moshier 1992).
#[inline(always)]
pub unsafe fn exp<L: Lanes>(x: L) -> L {
    unsafe {
        let (low, high) = (L::splat(SMALLEST), L::splat(LARGEST));
        let bounded = high.min(low.max(x));
        // Adding 1.5·2²³ rounds to whole numbers.
        let magic = L::splat(12_582_912.0);
        let n = bounded.mul_add(L::splat(std::f32::consts::LOG2_E), magic).sub(magic);
        let r = n.mul_add(L::splat(-0.693_359_4), bounded);
        let r = n.mul_add(L::splat(2.121_944_4e-4), r);
        let mut p = L::splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = p.mul_add(r, L::splat(c));
        }
        p.mul_add(r.mul(r), r.add(L::splat(1.0))).mul(n.pow2())
    }
}

/// 1/(1 + e^−x).
#[inline(always)]
pub unsafe fn sigmoid<L: Lanes>(x: L) -> L {
    unsafe {
        let one = L::splat(1.0);
        one.div(one.add(exp(L::splat(0.0).sub(x))))
    }
}

/// The standard normal distribution Φ(x) = (1 + erf(x/√2))/2 with an error below 10⁻⁷, and its density.
///
/// erf as in Abramowitz & Stegun 7.1.26.
#[inline(always)]
pub unsafe fn normal<L: Lanes>(x: L) -> (L, L) {
    unsafe {
        let zero = L::splat(0.0);
        let z = x.max(zero.sub(x)).mul(L::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = L::splat(1.0).div(z.mul_add(L::splat(0.327_591_1), L::splat(1.0)));
        let mut p = L::splat(1.061_405_4);
        for c in [-1.453_152_1, 1.421_413_8, -0.284_496_74, 0.254_829_6] {
            p = p.mul_add(t, L::splat(c));
        }
        let bell = exp(zero.sub(z.mul(z)));
        // Half of erf(z), which is not negative; twice where x > 0, less itself: the sign of x.
        let half = L::splat(0.5).sub(p.mul(t).mul(bell).mul(L::splat(0.5)));
        let signed = half.add(half).keep_where_positive(x).sub(half);
        // 1/√(2π)
        (L::splat(0.5).add(signed), bell.mul(L::splat(0.398_942_3)))
    }
}
