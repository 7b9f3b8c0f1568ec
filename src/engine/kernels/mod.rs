//! Operators of domain `bisam`: kernels in Rust that run on ONNX Runtime's own threads, for CPU.
//!
//! All tensors are f32. [`fuse`](crate::autodiff::fuse) writes them into a graph before it is differentiated. Each kernel does what a few
//! plain operators do, without their passes over memory, and is checked against them.
//!
//! | operator | inputs | outputs |
//! |---|---|---|
//! | `Conv` | X [N,C,H,W], W [M,C/g,K₁,K₂], B `[M]`? | Y |
//! | `ConvInputGrad` | Ȳ, W | X̄ |
//! | `ConvWeightGrad` | X, Ȳ | W̄ |
//! | `BatchNorm` | X [N,C,…], γ `[C]`, β `[C]`, residual? | Y, μ, v |
//! | `BatchNormGrad` | X, Ȳ, γ, β, μ, v, Y? | X̄, γ̄, β̄, the residual's? |
//! | `LayerNorm` | X [A…,B…], γ [B…]?, β [B…]? | Y |
//! | `LayerNormGrad` | X, Ȳ, γ? | X̄, γ̄?, β̄? |
//! | `Softmax` | X [A…,B] | Y |
//! | `SoftmaxGrad` | Y, Ȳ | X̄ |
//! | `Silu`, `Gelu` | X | Y |
//! | `SiluGrad`, `GeluGrad` | X, Ȳ | X̄ |
//! | `MaxPool` | X [N,C,H,W] | Y |
//! | `MaxPoolGrad` | X, Ȳ | X̄ |
//! | `BatchNormAgain` | a cotangent, X, γ, β, μ, v | Y |
//! | `LayerNormAgain`, `SiluAgain`, `GeluAgain` | a cotangent, and as without `Again` | Y |
//! | `Uniform` | key `[3]` | random numbers in [0, 1) |
//! | `Elementwise` | vectors [P] and scalars | vectors [P] |
//!
//! The cotangent decides only when an `Again` runs ([`again`](crate::autodiff)).

mod conv;
pub(super) mod elementwise;
mod groups;
mod math;
mod norm;
mod operators;
mod outer;
mod plan;
mod pointwise;
mod pool;
mod product;
mod random;
mod rows;
mod simd;
mod tile;
mod tiles;
mod turn;
mod winograd;
mod winograd_sums;

pub(super) use conv::Geometry;
pub use operators::domain;
pub(super) use operators::{OPS, Op, Settings, geometry, planes, to_ort, windows};
use ort::operator::ComputeContext;
use std::cell::Cell;
use std::thread::LocalKey;

/// What runs the parts of a kernel's work.
pub(super) trait Pool {
    /// Calls `task(0)`, …, `task(n − 1)`, in any order and on any thread, and returns when all are done.
    fn run(&self, n: usize, task: &(dyn Fn(usize) + Sync));
}

impl Pool for ComputeContext {
    fn run(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        // Without a pool, or if it refuses, the calling thread does it all.
        if n < 2 || self.par_for(n, 0, task).is_err() {
            (0..n).for_each(task);
        }
    }
}

/// A pointer that tasks on several threads share; each uses another part of what it points to, or only reads.
#[derive(Clone, Copy)]
struct Raw<P>(P);

// SAFETY: see the type; the kernels say at each use why parts do not overlap.
unsafe impl<P> Send for Raw<P> {}
// SAFETY: as above.
unsafe impl<P> Sync for Raw<P> {}

impl<P: Copy> Raw<P> {
    fn get(&self) -> P {
        self.0
    }
}

/// Memory that a thread keeps from one kernel to the next.
#[derive(Default)]
struct Buffer(Cell<Vec<f32>>);

trait Buffers {
    /// Lends the vector, with whatever it held.
    fn with_buffer<R>(&'static self, f: impl FnOnce(&mut Vec<f32>) -> R) -> R;
    /// Lends `n` numbers that start at a cache line, with whatever they were.
    fn with_buffer_of<R>(&'static self, n: usize, f: impl FnOnce(*mut f32) -> R) -> R;
}

impl Buffers for LocalKey<Buffer> {
    fn with_buffer<R>(&'static self, f: impl FnOnce(&mut Vec<f32>) -> R) -> R {
        // A kernel inside a kernel's task would find an empty one, never the same.
        let mut vector = self.with(|b| b.0.take());
        let result = f(&mut vector);
        self.with(|b| b.0.set(vector));
        result
    }

    fn with_buffer_of<R>(&'static self, n: usize, f: impl FnOnce(*mut f32) -> R) -> R {
        const LINE: usize = 64;
        self.with_buffer(|vector| {
            if vector.len() < n + LINE / 4 {
                vector.resize(n + LINE / 4, 0.0);
            }
            let offset = vector.as_ptr().align_offset(LINE);
            f(vector[offset..].as_mut_ptr())
        })
    }
}

thread_local! {
    /// What a task lays out for itself.
    static SCRATCH: Buffer = Buffer::default();
    /// Weights, or what takes their place in a product, as all tasks of a kernel read them.
    static WEIGHTS: Buffer = Buffer::default();
    /// Sums that the tasks of a kernel make apart.
    static SUMS: Buffer = Buffer::default();
}

/// Calls a function with run-time sizes as its const parameters.
macro_rules! with_sizes {
    ($f:ident, $l:ty, $rows:expr, $vectors:expr, [$($r:literal)*] $v:tt, $args:tt) => {
        match $rows { $($r => with_sizes!(@ $f, $l, $r, $vectors, $v, $args),)* _ => unreachable!("larger than a tile") }
    };
    (@ $f:ident, $l:ty, $r:literal, $vectors:expr, [$($v:literal)*], $args:tt) => {
        match $vectors { $($v => with_sizes!(% $f, $l, $r, $v, $args),)* _ => unreachable!("larger than a tile") }
    };
    (% $f:ident, $l:ty, $r:literal, $v:literal, ($($arg:expr),*)) => { $f::<$l, $r, $v>($($arg),*) };
}

use with_sizes;

#[cfg(test)]
pub(super) use self::{
    operators::Input,
    tests::{Backwards, numbers},
};

#[cfg(test)]
mod tests {
    use super::Pool;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Runs tasks one after the other, last one first.
    pub struct Backwards;

    impl Pool for Backwards {
        fn run(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
            (0..n).rev().for_each(task);
        }
    }

    /// Numbers in −1..1.
    pub fn numbers(seed: u64, n: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    /// Largest difference, relative to the largest number.
    pub(super) fn error(got: &[f32], want: &[f64]) -> f64 {
        assert_eq!(got.len(), want.len());
        let largest = want.iter().fold(1e-30, |m: f64, w| m.max(w.abs()));
        let difference = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs());
        difference.fold(0.0, |m: f64, d| if d.is_nan() { f64::INFINITY } else { m.max(d) }) / largest
    }
}
