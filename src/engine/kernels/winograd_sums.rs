//! The weight gradient by Winograd's filtering: matrix products over tiles ([`super::winograd`]).
//!
//! Its products run over tiles, so tiles are turned around: channels become lanes.

use super::conv::Side;
use super::simd::{Job, LANES, Lanes, Level, run};
use super::tile::tile;
use super::tiles::{Grid, PLACES, Part, gradient_tiles, groups, input_tiles, pitch};
use super::turn::{copy, turn};
use super::{Buffer, Buffers, Pool, Raw, SCRATCH, SUMS, with_sizes};
use std::ops::Range;

thread_local! {
    static LEFT: Buffer = Buffer::default();
    static RIGHT: Buffer = Buffer::default();
}

/// Numbers that transformed tiles of all channels may take for the weight gradient, where threads share them and where each has its own.
const CHUNK: usize = 1 << 21;
const SMALL_CHUNK: usize = 1 << 18;
/// Sums of a weight gradient that every part has its own of, and the parts.
const FEW_SUMS: usize = 1 << 19;
const PARTS: usize = 8;
/// Tiles that are turned around in one task, about.
const TURNED: usize = 256;
/// Rows of Ȳ in one task.
const ROWS: usize = 64;

/// The transformed tiles of up to sixteen channels, turned around: place p and channel c of tile t go to `out[p·apart + t·pitch + c]`.
struct Turn<'a> {
    grid: &'a Grid,
    parts: &'a [Part],
    tiles: usize,
    /// Whether this is Ȳ.
    gradient: bool,
    source: *const f32,
    planes: usize,
    channels: usize,
    out: *mut f32,
    apart: usize,
    pitch: usize,
    scratch: *mut f32,
}

impl Job for Turn<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let pitch = pitch(self.tiles);
        let plane = if self.gradient { self.grid.target } else { self.grid.source };
        // SAFETY: scratch holds sixteen channels' tiles and what the transforms need.
        unsafe {
            let scratch = self.scratch.add(PLACES * LANES * pitch);
            for part in self.parts {
                for c in 0..self.channels {
                    let plane = self.source.add((part.sample * self.planes + c) * plane[0] * plane[1]);
                    let out = self.scratch.add(c * pitch + part.at);
                    if self.gradient {
                        gradient_tiles::<L>(self.grid, plane, part, scratch, out, LANES * pitch);
                    } else {
                        input_tiles::<L>(self.grid, plane, part, scratch, out, LANES * pitch);
                    }
                }
            }
            for place in 0..PLACES {
                let (from, to) = (self.scratch.add(place * LANES * pitch), self.out.add(place * self.apart));
                turn::<L>(from, pitch, self.channels, self.tiles, to, self.pitch);
            }
        }
    }
}

/// The sum over tiles at one place of the products of rows of Ȳ and channels of X.
struct Sum {
    tiles: usize,
    rows: Range<usize>,
    channels: usize,
    /// Tiles of Ȳ and X at the place, and numbers from one to the next.
    left: *const f32,
    right: *const f32,
    pitches: [usize; 2],
    /// [rows, pitches[1]]
    sums: *mut f32,
    /// Adds to what is there.
    add: bool,
    scratch: *mut f32,
}

impl Job for Sum {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let [left, right] = self.pitches;
        let offsets: Vec<usize> = (0..self.tiles).map(|t| t * right / LANES).collect();
        for columns in groups(self.channels.div_ceil(LANES), L::TILE.1) {
            let mut row = self.rows.start;
            while row < self.rows.end {
                let high = L::TILE.0.min(self.rows.end - row);
                let (first, vectors) = (columns.start * LANES, columns.len());
                // SAFETY: channels are rounded up to vectors on both sides; scratch holds a register tile.
                unsafe {
                    let to = self.sums.add(row * right + first);
                    let (c, ld) = if self.add { (self.scratch, 3 * LANES) } else { (to, right) };
                    let at = [0, 1, 2].map(|v: usize| v.min(vectors - 1) * LANES);
                    let b = self.right.add(first);
                    let b = [b.add(at[0]), b.add(at[1]), b.add(at[2])];
                    let c = [c.add(at[0]), c.add(at[1]), c.add(at[2])];
                    let a = self.left.add(row);
                    with_sizes!(tile, L, high, vectors, [1 2 3 4 5 6 7 8][1 2 3], (&offsets, a, left, b, c, ld));
                    if self.add {
                        for r in 0..high {
                            copy::<L>(self.scratch.add(r * ld), to.add(r * right), vectors * LANES, true);
                        }
                    }
                }
                row += high;
            }
        }
    }
}

/// Gᵀ s G of one row of kernels, with s the sum over the parts.
struct Gather {
    channels: usize,
    sums: *const f32,
    apart: usize,
    parts: usize,
    /// Numbers of a part.
    all: usize,
    dw: *mut f32,
}

impl Gather {
    /// The sum of sixteen channels at one place.
    #[inline(always)]
    unsafe fn at<L: Lanes>(&self, place: usize, channel: usize) -> L {
        // SAFETY: sums are whole vectors of channels.
        unsafe {
            let from = self.sums.add(place * self.apart + channel);
            let mut sum = L::load(from);
            for part in 1..self.parts {
                sum = sum.add(L::load(from.add(part * self.all)));
            }
            sum
        }
    }
}

impl Job for Gather {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let mut first = 0;
        while first < self.channels {
            // SAFETY: sums are whole vectors of channels.
            unsafe {
                let half = L::splat(0.5);
                let mut wide = [[half; 3]; 4];
                for (x, sums) in wide.iter_mut().enumerate() {
                    let (s0, s1) = (self.at::<L>(x, first), self.at::<L>(4 + x, first));
                    let (s2, s3) = (self.at::<L>(8 + x, first), self.at::<L>(12 + x, first));
                    let (sum, difference) = (s1.add(s2).mul(half), s1.sub(s2).mul(half));
                    *sums = [s0.add(sum), difference, sum.add(s3)];
                }
                let mut lanes = [[0.0; LANES]; 9];
                let [t0, t1, t2, t3] = wide;
                for y in 0..3 {
                    let (sum, difference) = (t1[y].add(t2[y]).mul(half), t1[y].sub(t2[y]).mul(half));
                    t0[y].add(sum).store(lanes[3 * y].as_mut_ptr());
                    difference.store(lanes[3 * y + 1].as_mut_ptr());
                    sum.add(t3[y]).store(lanes[3 * y + 2].as_mut_ptr());
                }
                for c in 0..LANES.min(self.channels - first) {
                    for (t, lanes) in lanes.iter().enumerate() {
                        *self.dw.add(9 * (first + c) + t) = lanes[c];
                    }
                }
            }
            first += LANES;
        }
    }
}

/// `dw` [M,C/g,3,3] = Σ Ȳ·X over samples and positions.
pub fn weight_gradient(
    grid: &Grid,
    groups: usize,
    x: &Side<*const f32>,
    dy: &Side<*const f32>,
    dw: &mut [f32],
    level: Level,
    pool: &dyn Pool,
) {
    let (m, c) = (dy.channels / groups, x.channels / groups);
    // Channels are whole vectors, and not powers of two.
    let pitches = [m, c].map(|k| k.next_multiple_of(LANES) + LANES);
    let (apart, all) = (m * pitches[1], PLACES * m * pitches[1]);
    // Few sums stay in a cache, and so does what each part of the samples adds to its own; many are one part's that all threads work on.
    let parts = if all <= FEW_SUMS { PARTS.min(grid.rows()) } else { 1 };
    let products = Products { grid, channels: [m, c], sides: [dy, x], pitches, apart, level };
    SUMS.with_buffer_of(parts * all, |sums| {
        let sums = Raw(sums);
        for (group, dw) in dw.chunks_exact_mut(9 * m * c).enumerate() {
            if parts == 1 {
                products.add(group, 0..grid.rows(), CHUNK, sums, pool);
            } else {
                pool.run(parts, &|i| {
                    let rows = grid.rows() * i / parts..grid.rows() * (i + 1) / parts;
                    // SAFETY: every part has sums of its own.
                    let sums = Raw(unsafe { sums.get().add(i * all) });
                    products.add(group, rows, SMALL_CHUNK, sums, &Alone);
                });
            }
            let dw = Raw(dw.as_mut_ptr());
            pool.run(m, &|i| {
                // SAFETY: the level is one this processor has; every task has a row of kernels of its own.
                unsafe {
                    let sums = sums.get().add(i * pitches[1]);
                    let dw = dw.get().add(9 * i * c);
                    run(level, &Gather { channels: c, sums, apart, parts, all, dw });
                }
            });
        }
    });
}

/// What runs tasks on the thread that asks.
struct Alone;

impl Pool for Alone {
    fn run(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..n).for_each(task);
    }
}

/// The matrix products that sum up a weight gradient: Ȳ on the left, X on the right.
struct Products<'a> {
    grid: &'a Grid,
    /// Of a group.
    channels: [usize; 2],
    sides: [&'a Side<*const f32>; 2],
    /// Numbers from one tile to the next on either side; the right one's is that of the sums' rows, too.
    pitches: [usize; 2],
    /// Numbers of the sums at one place.
    apart: usize,
    level: Level,
}

impl Products<'_> {
    /// The sums over some rows of tiles, of which `chunk` numbers are held at once.
    fn add(&self, group: usize, rows: Range<usize>, chunk: usize, sums: Raw<*mut f32>, pool: &dyn Pool) {
        let Self { grid, channels: [m, c], pitches, .. } = *self;
        let wide = grid.tiles()[1];
        let most = (chunk / (PLACES * (pitches[0] + pitches[1]) * wide)).max(1).min(rows.len());
        let apart = pitches.map(|p| p * most * wide);
        LEFT.with_buffer_of(PLACES * apart[0], |left| {
            RIGHT.with_buffer_of(PLACES * apart[1], |right| {
                let turned = [Raw(left), Raw(right)];
                for first in rows.clone().step_by(most) {
                    let chunk = first..(first + most).min(rows.end);
                    self.turn_around(group, &chunk, turned, apart, pool);
                    let slices = m.div_ceil(ROWS);
                    pool.run(PLACES * slices, &|task| {
                        let (place, slice) = (task / slices, task % slices);
                        SCRATCH.with_buffer_of(8 * 3 * LANES, |scratch| {
                            // SAFETY: the level is one this processor has; every task has rows of sums of its own.
                            unsafe {
                                let job = Sum {
                                    tiles: chunk.len() * wide,
                                    rows: slice * ROWS..((slice + 1) * ROWS).min(m),
                                    channels: c,
                                    left: turned[0].get().add(place * apart[0]),
                                    right: turned[1].get().add(place * apart[1]),
                                    pitches,
                                    sums: sums.get().add(place * self.apart),
                                    add: first > rows.start,
                                    scratch,
                                };
                                run(self.level, &job);
                            }
                        });
                    });
                }
            });
        });
    }

    /// Both sides' tiles of some rows of tiles, as [`Turn`] writes them.
    fn turn_around(
        &self,
        group: usize,
        rows: &Range<usize>,
        out: [Raw<*mut f32>; 2],
        apart: [usize; 2],
        pool: &dyn Pool,
    ) {
        let Self { grid, channels, sides, pitches, level, .. } = *self;
        let (blocks, wide) = (grid.blocks(rows.clone(), TURNED), grid.tiles()[1]);
        let vectors = channels.map(|k| k.div_ceil(LANES));
        pool.run((vectors[0] + vectors[1]) * blocks.len(), &|task| {
            let (vector, block) = (task / blocks.len(), &blocks[task % blocks.len()]);
            let side = usize::from(vector >= vectors[0]);
            let first = (vector - side * vectors[0]) * LANES;
            let plane = [grid.target, grid.source][side].iter().product::<usize>();
            let (parts, tiles) = (grid.parts(block), block.len() * wide);
            SCRATCH.with_buffer_of(PLACES * LANES * pitch(tiles) + grid.held(block.len()), |scratch| {
                // SAFETY: the level is one this processor has; every task has tiles and channels of its own.
                unsafe {
                    let job = Turn {
                        grid,
                        parts: &parts,
                        tiles,
                        gradient: side == 0,
                        source: sides[side].data.get().add((group * channels[side] + first) * plane),
                        planes: sides[side].channels,
                        channels: LANES.min(channels[side] - first),
                        out: out[side].get().add((block.start - rows.start) * wide * pitches[side] + first),
                        apart: apart[side],
                        pitch: pitches[side],
                        scratch,
                    };
                    run(level, &job);
                }
            });
        });
    }
}
