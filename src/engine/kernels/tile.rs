//! Register tiles of matrix products.

use super::simd::{Job, LANES, Lanes};

/// R rows and V vectors of a product, c = a·b; one factor is moved by `offsets`, counted in vectors, the other by `step` numbers.
struct Tile<'a, const R: usize, const V: usize, const LEFT: bool> {
    offsets: &'a [usize],
    a: *const f32,
    b: [*const f32; 3],
    step: usize,
    c: [*mut f32; 3],
    ld: usize,
}

impl<const R: usize, const V: usize, const LEFT: bool> Job for Tile<'_, R, V, LEFT> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        // SAFETY: the caller's pointers are good for the rows and vectors.
        unsafe {
            let mut sums = [[L::splat(0.0); V]; R];
            let mut at = 0;
            for offset in self.offsets {
                let (left, right) = if LEFT { (offset * LANES, at) } else { (at, offset * LANES) };
                let mut column = [L::splat(0.0); V];
                for (v, x) in column.iter_mut().enumerate() {
                    *x = L::load(self.b[v].add(right));
                }
                let a = self.a.add(left);
                for (r, sum) in sums.iter_mut().enumerate() {
                    let w = L::splat(*a.add(r));
                    for (s, x) in sum.iter_mut().zip(column) {
                        *s = w.mul_add(x, *s);
                    }
                }
                at += self.step;
            }
            for (r, sum) in sums.iter().enumerate() {
                for (v, s) in sum.iter().enumerate() {
                    s.store(self.c[v].add(r * self.ld));
                }
            }
        }
    }
}

/// R rows and V vectors of a product: c = a·b with the R numbers of column i of a at i·`step`, and row i of b at `offsets[i]` vectors from each of `b`.
#[inline(always)]
pub unsafe fn tile<L: Lanes, const R: usize, const V: usize>(
    offsets: &[usize],
    a: *const f32,
    step: usize,
    b: [*const f32; 3],
    c: [*mut f32; 3],
    ld: usize,
) {
    unsafe { L::outlined(&Tile::<R, V, false> { offsets, a, b, step, c, ld }) }
}

/// As [`tile`], with column i of a at `offsets[i]` vectors, and row i of b at i·`step`.
#[inline(always)]
pub unsafe fn tile_from<L: Lanes, const R: usize, const V: usize>(
    offsets: &[usize],
    a: *const f32,
    step: usize,
    b: [*const f32; 3],
    c: [*mut f32; 3],
    ld: usize,
) {
    unsafe { L::outlined(&Tile::<R, V, true> { offsets, a, b, step, c, ld }) }
}

/// R positions and V vectors of rows of a convolution's output: sums over kernel elements and channels.
pub struct Positions<'a> {
    /// Kernel elements, and for each the places that positions read, from the first one's on; those of one kernel element and the next
    /// are `apart`.
    pub taps: &'a [usize],
    pub places: &'a [usize],
    pub apart: usize,
    /// Places of vectors of channels, which are `pitch` apart.
    pub source: *const f32,
    pub pitch: usize,
    pub channels: usize,
    /// For every kernel element and channel a vector of rows; those of one kernel element and the next are `of_tap` apart, of one vector
    /// of rows and the next `of_rows`.
    pub weights: *const f32,
    pub of_tap: usize,
    pub of_rows: usize,
    /// A vector of rows for every position; those of one vector of rows and the next are `out_rows` apart.
    pub out: *mut f32,
    pub positions: &'a [usize],
    pub out_rows: usize,
    /// What sums begin with, for every vector of rows; where null, with what is there.
    pub bias: *const f32,
}

struct Sized<'a, const R: usize, const V: usize>(&'a Positions<'a>);

impl<const R: usize, const V: usize> Job for Sized<'_, R, V> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let p = self.0;
        // SAFETY: the caller's pointers are good for the positions, channels and rows.
        unsafe {
            let mut out = [p.out; R];
            for (r, out) in out.iter_mut().enumerate() {
                *out = out.add(p.positions[r] * LANES);
            }
            let mut sums = [[L::splat(0.0); V]; R];
            for (r, sum) in sums.iter_mut().enumerate() {
                for (v, s) in sum.iter_mut().enumerate() {
                    *s = if p.bias.is_null() {
                        L::load(out[r].add(v * p.out_rows))
                    } else {
                        L::load(p.bias.add(v * LANES))
                    };
                }
            }
            for (k, tap) in p.taps.iter().enumerate() {
                let mut from = [p.source; R];
                for (r, from) in from.iter_mut().enumerate() {
                    *from = from.add(p.places[k * p.apart + r] * p.pitch);
                }
                let mut weights = p.weights.add(tap * p.of_tap);
                for c in 0..p.channels {
                    let mut column = [L::splat(0.0); V];
                    for (v, x) in column.iter_mut().enumerate() {
                        *x = L::load(weights.add(v * p.of_rows));
                    }
                    for (r, sum) in sums.iter_mut().enumerate() {
                        let x = L::splat(*from[r].add(c));
                        for (s, w) in sum.iter_mut().zip(column) {
                            *s = x.mul_add(w, *s);
                        }
                    }
                    weights = weights.add(LANES);
                }
            }
            for (r, sum) in sums.iter().enumerate() {
                for (v, s) in sum.iter().enumerate() {
                    s.store(out[r].add(v * p.out_rows));
                }
            }
        }
    }
}

/// Computes R positions and V vectors of rows.
#[inline(always)]
pub unsafe fn positions<L: Lanes, const R: usize, const V: usize>(job: &Positions<'_>) {
    unsafe { L::outlined(&Sized::<R, V>(job)) }
}
