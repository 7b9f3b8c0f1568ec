//! Batches on their way into a stage: which rows, how wide, and how they get there.

use super::arena::Buffer;
use super::cuda::Uploads;
use crate::error::Result;
use crate::ir::Type;

/// Bytes of a sample, by input.
pub(super) fn widths(inputs: &[(String, Type)]) -> Vec<usize> {
    inputs.iter().map(|(_, ty)| ty.bytes() / ty.shape.first().copied().unwrap_or_default().max(1)).collect()
}

/// The same of the inputs of a batch of `n`.
pub(super) fn fed_widths(inputs: &[&[u8]], n: usize) -> Vec<usize> {
    inputs.iter().map(|bytes| bytes.len() / n.max(1)).collect()
}

/// Copies these rows of `len` bytes each to the start of a buffer, on a device by its `uploads`.
pub(super) fn write_rows(
    buffer: &Buffer,
    uploads: Option<&Uploads>,
    bytes: &[u8],
    len: usize,
    rows: &[usize],
) -> Result<()> {
    // As many as follow each other are one copy.
    let runs = rows.chunk_by(|a, b| a + 1 == *b).map(|run| &bytes[run[0] * len..(run[0] + run.len()) * len]);
    match uploads {
        Some(uploads) => {
            let target = buffer.pointer(0, rows.len() * len)?;
            let fill = |mut to: &mut [u8]| {
                for run in runs {
                    let (here, rest) = to.split_at_mut(run.len());
                    here.copy_from_slice(run);
                    to = rest;
                }
            };
            // SAFETY: the buffer has that many bytes on the device, and so have the uploads of this stage's inputs.
            unsafe { uploads.send(target, rows.len() * len, fill) }
        }
        None => {
            let mut done = 0;
            for run in runs {
                buffer.write(done, run)?;
                done += run.len();
            }
            Ok(())
        }
    }
}

/// The places of the `n` highest scores, in order; of equal ones the first.
pub(super) fn highest(scores: &[f32], n: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..scores.len()).collect();
    places.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    places.truncate(n);
    places.sort_unstable();
    places
}
