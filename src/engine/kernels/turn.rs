//! Numbers copied, and matrices of sixteen rows turned around, so that rows become lanes, and back.

use super::simd::{LANES, Lanes};

/// Turns up to sixteen rows of `len` numbers, `pitch` apart, around: number k of row r goes to `to[k·apart + r]`.
///
/// Whole vectors are written, with zeros for the rows that are not there.
#[inline(always)]
pub unsafe fn turn<L: Lanes>(from: *const f32, pitch: usize, rows: usize, len: usize, to: *mut f32, apart: usize) {
    let mut at = 0;
    while at < len {
        // SAFETY: rows lie where the caller says, and vectors where they are written.
        unsafe {
            if rows == LANES && len >= LANES {
                // The last vectors may be turned twice.
                let at = at.min(len - LANES);
                L::turn(from.add(at), pitch, to.add(at * apart), apart);
            } else {
                let n = LANES.min(len - at);
                let (mut block, mut turned) = ([0.0; LANES * LANES], [0.0; LANES * LANES]);
                for r in 0..rows {
                    let (from, to) = (from.add(r * pitch + at), block.as_mut_ptr().add(r * LANES));
                    if n == LANES { L::load(from) } else { L::load_first(from, n) }.store(to);
                }
                L::turn(block.as_ptr(), LANES, turned.as_mut_ptr(), LANES);
                for k in 0..n {
                    L::load(turned.as_ptr().add(k * LANES)).store(to.add((at + k) * apart));
                }
            }
        }
        at += LANES;
    }
}

/// Turns `len` vectors, `apart` from each other, back into up to sixteen rows `pitch` apart, adding to what is there if `add`.
#[inline(always)]
pub unsafe fn turn_back<L: Lanes>(
    from: *const f32,
    apart: usize,
    len: usize,
    to: *mut f32,
    pitch: usize,
    rows: usize,
    add: bool,
) {
    let mut at = 0;
    while at < len {
        // SAFETY: as above.
        unsafe {
            if rows == LANES && len >= LANES && !add {
                let at = at.min(len - LANES);
                L::turn(from.add(at * apart), apart, to.add(at), pitch);
            } else {
                let n = LANES.min(len - at);
                let (mut block, mut turned) = ([0.0; LANES * LANES], [0.0; LANES * LANES]);
                for k in 0..n {
                    L::load(from.add((at + k) * apart)).store(block.as_mut_ptr().add(k * LANES));
                }
                L::turn(block.as_ptr(), LANES, turned.as_mut_ptr(), LANES);
                for r in 0..rows {
                    copy::<L>(turned.as_ptr().add(r * LANES), to.add(r * pitch + at), n, add);
                }
            }
        }
        at += LANES;
    }
}

/// Writes `n` zeros.
#[inline(always)]
pub unsafe fn fill_zero<L: Lanes>(mut p: *mut f32, mut n: usize) {
    unsafe {
        let zero = L::splat(0.0);
        while n >= LANES {
            zero.store(p);
            (p, n) = (p.add(LANES), n - LANES);
        }
        if n > 0 {
            zero.store_first(p, n);
        }
    }
}

/// Copies `n` numbers, adding them to what is there if `add`.
#[inline(always)]
pub unsafe fn copy<L: Lanes>(mut from: *const f32, mut to: *mut f32, mut n: usize, add: bool) {
    unsafe {
        while n >= LANES {
            let v = L::load(from);
            if add { v.add(L::load(to)) } else { v }.store(to);
            (from, to, n) = (from.add(LANES), to.add(LANES), n - LANES);
        }
        if n > 0 {
            let v = L::load_first(from, n);
            if add { v.add(L::load_first(to, n)) } else { v }.store_first(to, n);
        }
    }
}
