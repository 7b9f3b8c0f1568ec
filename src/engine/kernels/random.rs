//! Uniform random numbers from a key and a place: the same whatever the threads, and the same as the plain operators give
//! ([`lower_uniform`](crate::autodiff::lower_uniform)).

use super::{Pool, Raw};
use crate::autodiff::{PRIME, start};
use crate::error::{Error, Result};

/// Numbers of a part.
const PART: usize = 16384;

/// Writes the numbers of source `id` under `key`, in [0, 1).
pub fn uniform(id: i64, key: &[f32], out: &mut [f32], pool: &dyn Pool) -> Result<()> {
    let [a, b, c] = key else { return Err(Error::new(format!("a key of {} numbers, not 3", key.len()))) };
    let key = [*a as u64, *b as u64, *c as u64];
    let (n, first) = (out.len(), start(id));
    let out = Raw(out.as_mut_ptr());
    pool.run(n.div_ceil(PART), &|part| {
        let begin = part * PART;
        let len = PART.min(n - begin);
        // SAFETY: parts do not overlap and lie within the tensor.
        let out = unsafe { std::slice::from_raw_parts_mut(out.get().add(begin), len) };
        for (i, out) in out.iter_mut().enumerate() {
            let mut x = ((begin + i) as u64 + first) % PRIME;
            for k in key {
                x = (x + k) % PRIME;
                x = x * x % PRIME * x % PRIME;
            }
            *out = (x >> 7) as f32 * (1.0 / 16_777_216.0);
        }
    });
    Ok(())
}
