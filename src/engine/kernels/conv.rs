//! Convolution of images, and its gradients: which way each takes.
//!
//! Convolutions of 3 × 3 with channels enough take Winograd's filtering ([`super::winograd`], [`super::winograd_sums`]). All others turn planes
//! around, so that channels become lanes ([`super::plan`]): those of many groups with few channels are sums for sixteen groups at a time
//! ([`super::groups`]), the rest are products over channels and kernel elements ([`super::product`]) or, for the weights, over positions
//! ([`super::outer`]). Everything is f32 in NCHW.
//!
//! How the work is divided depends on the shapes alone, so results do not depend on the number of threads.

use super::plan::Plan;
use super::product::{self, Kernels};
use super::simd::Level;
use super::tiles::Grid;
use super::{Pool, Raw, groups, outer, winograd, winograd_sums};
use crate::error::{Error, Result};

/// Channels of a group on either side from which on Winograd's filtering pays, and for the weight gradient.
const WINOGRAD: usize = 16;
const WINOGRAD_WEIGHT: usize = 64;
/// Groups from which on groups are lanes, and the most channels one may have on either side.
const MANY_GROUPS: usize = 8;
const FEW_CHANNELS: usize = 8;

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

    /// Whether Winograd's filtering serves these convolutions, and saves more than its transforms cost.
    fn winograd(&self, least: usize) -> bool {
        let (c, m) = (self.c / self.groups, self.m / self.groups);
        let plain = self.kernel == [3, 3] && self.strides == [1, 1] && self.dilations == [1, 1];
        plain && c.min(m) >= least && self.n > 0
    }

    /// The tiles of Y, for Winograd's filtering.
    fn grid(&self) -> Grid {
        Grid { n: self.n, source: self.input, target: self.output, begin: self.begin.map(|b| b as isize) }
    }

    /// Whether there are many groups of few channels.
    fn many_groups(&self) -> bool {
        let most = self.c.max(self.m) / self.groups;
        most == 1 || self.groups >= MANY_GROUPS && most <= FEW_CHANNELS
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

/// A tensor [N, channels, …] of a product.
pub struct Side<P> {
    pub data: Raw<P>,
    pub channels: usize,
}

/// Adds up sums that were made apart.
pub fn add_parts(sums: &[f32], total: &mut [f32]) {
    let (first, rest) = sums.split_at(total.len());
    total.copy_from_slice(first);
    for part in rest.chunks_exact(total.len().max(1)) {
        total.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
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
    if let Some(bias) = bias
        && bias.len() != g.m
    {
        return Err(Error::new(format!("B has {} elements, and Y {} channels", bias.len(), g.m)));
    }
    let (rows, channels, taps) = (g.m / g.groups, g.c / g.groups, g.taps());
    if g.many_groups() {
        groups::forward(g, x, weight, bias, y, level, pool);
    } else if g.winograd(WINOGRAD) {
        let source = Side { data: Raw(x.as_ptr()), channels: g.c };
        let target = Side { data: Raw(y.as_mut_ptr()), channels: g.m };
        let kernels = winograd::Kernels { rows, channels, apart: [channels * 9, 9], turned: false };
        winograd::convolve(&g.grid(), kernels, g.groups, &source, &target, weight, bias, false, level, pool);
    } else {
        let kernels = Kernels { weight, rows, channels, apart: [channels * taps, taps] };
        let plan = Plan::forward(g, product::POSITIONS);
        product::convolve(g, &plan, &kernels, x, y, bias, false, level, pool);
    }
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
    let (rows, channels, taps) = (g.c / g.groups, g.m / g.groups, g.taps());
    if g.many_groups() {
        groups::input_gradient(g, dy, weight, dx, add, level, pool);
    } else if g.winograd(WINOGRAD) {
        let source = Side { data: Raw(dy.as_ptr()), channels: g.m };
        let target = Side { data: Raw(dx.as_mut_ptr()), channels: g.c };
        let grid = Grid { n: g.n, source: g.output, target: g.input, begin: g.begin.map(|b| 2 - b as isize) };
        let kernels = winograd::Kernels { rows, channels, apart: [9, rows * 9], turned: true };
        winograd::convolve(&grid, kernels, g.groups, &source, &target, weight, None, add, level, pool);
    } else {
        let kernels = Kernels { weight, rows, channels, apart: [taps, rows * taps] };
        let plan = Plan::gradient(g, product::POSITIONS);
        product::convolve(g, &plan, &kernels, dy, dx, None, add, level, pool);
    }
    Ok(())
}

/// W̄ = Σ Ȳ·X over samples and positions.
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
    if g.many_groups() {
        groups::weight_gradient(g, x, dy, dw, level, pool);
    } else if g.winograd(WINOGRAD_WEIGHT) {
        let (x, dy) = (Raw(x.as_ptr()), Raw(dy.as_ptr()));
        let [x, dy] = [Side { data: x, channels: g.c }, Side { data: dy, channels: g.m }];
        winograd_sums::weight_gradient(&g.grid(), g.groups, &x, &dy, dw, level, pool);
    } else {
        outer::weight_gradient(g, x, dy, dw, level, pool);
    }
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
        // Winograd's filtering: whole tiles and parts, channels that are no vectors, several chunks, any padding, groups.
        agrees(&geometry([3, 37, 41, 1], [9, 11], [3, 3], one, one, around(1)));
        agrees(&geometry([2, 32, 33, 1], [5, 8], [3, 3], one, one, ([0, 2], [1, 0])));
        agrees(&geometry([2, 34, 32, 1], [6, 7], [3, 3], one, one, ([3, 4], [0, 5])));
        agrees(&geometry([40, 32, 48, 1], [2, 2], [3, 3], one, one, around(1)));
        agrees(&geometry([5, 33, 32, 1], [40, 40], [3, 3], one, one, around(1)));
        agrees(&geometry([2, 66, 70, 2], [4, 4], [3, 3], one, one, around(1)));
        agrees(&geometry([1, 32, 32, 1], [3, 70], [3, 3], one, one, none));
        agrees(&geometry([3, 5, 7, 1], [9, 11], [3, 3], one, one, around(1)));
        agrees(&geometry([3, 8, 16, 1], [8, 8], [3, 3], [2, 2], one, around(1)));
        agrees(&geometry([2, 3, 10, 1], [13, 17], [5, 3], [3, 2], one, ([2, 1], [0, 3])));
        agrees(&geometry([2, 4, 6, 1], [12, 12], [3, 3], one, [2, 3], around(2)));
        agrees(&geometry([2, 4, 6, 1], [12, 10], [3, 2], [2, 3], [3, 2], around(2)));
        agrees(&geometry([2, 6, 9, 3], [10, 10], [3, 3], one, one, around(1)));
        agrees(&geometry([2, 20, 20, 20], [9, 9], [3, 3], [2, 2], one, around(1)));
        // One block of positions, more of them, and too many for outer products.
        agrees(&geometry([21, 6, 9, 1], [14, 14], [3, 3], one, one, ([0, 0], [0, 0])));
        agrees(&geometry([25, 6, 9, 1], [14, 14], [3, 3], one, one, ([0, 0], [1, 1])));
        agrees(&geometry([8, 40, 21, 1], [8, 8], [3, 3], one, one, around(1)));
        agrees(&geometry([8, 34, 22, 2], [8, 8], [1, 1], one, one, none));
        agrees(&geometry([9, 34, 22, 2], [8, 8], [3, 3], one, one, around(1)));
        agrees(&geometry([2, 5, 5, 5], [30, 33], [5, 5], one, one, around(2)));
        agrees(&geometry([2, 5, 5, 5], [14, 9], [3, 5], [2, 3], [2, 1], ([1, 0], [0, 3])));
        agrees(&geometry([3, 40, 40, 40], [2, 2], [3, 3], [2, 2], one, around(1)));
        // Many groups, also in several blocks.
        agrees(&geometry([2, 16, 32, 8], [9, 8], [3, 3], one, one, around(1)));
        agrees(&geometry([3, 34, 17, 17], [11, 7], [3, 2], [2, 3], [1, 2], around(1)));
        agrees(&geometry([5, 72, 72, 9], [3, 3], [3, 3], one, one, around(1)));
        agrees(&geometry([2, 17, 17, 17], [50, 41], [3, 3], one, one, around(1)));
        agrees(&geometry([1, 16, 16, 16], [90, 41], [5, 3], [2, 3], [2, 1], around(1)));
        agrees(&geometry([2, 3, 3, 3], [9, 20], [7, 7], one, one, around(3)));
        agrees(&geometry([2, 3, 3, 3], [8, 8], [2, 2], [3, 3], one, none));
        agrees(&geometry([4, 33, 17, 1], [7, 7], [1, 1], one, one, none));
        agrees(&geometry([4, 9, 18, 1], [8, 8], [1, 1], [2, 2], one, none));
        agrees(&geometry([1, 3, 20, 1], [16, 16], [4, 4], [4, 4], one, none));
        agrees(&geometry([5, 70, 40, 1], [2, 2], [3, 3], one, one, around(1)));
        agrees(&geometry([3, 2, 3, 1], [1, 1], [1, 1], one, one, none));
        // More channels, and more rows, than are taken at once.
        agrees(&geometry([1, 230, 5, 1], [7, 7], [3, 3], [2, 2], one, around(1)));
        agrees(&geometry([2, 5, 300, 1], [9, 9], [3, 3], [2, 2], one, around(1)));
        agrees(&geometry([3, 32, 150, 1], [15, 14], [3, 3], [2, 2], one, around(1)));
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
        let biased = |n: usize| {
            let (bias, mut y) = (vec![0.0; n], vec![0.0; 48]);
            forward(&g, &x, &w, Some(&bias), &mut y, Level::best(), &Backwards)
        };
        assert!(biased(3).is_ok());
        assert!(biased(2).is_err());
    }
}
