//! Trained weights back into the user's own file, and the proof that other runtimes read it.

mod verify;
mod weights;

pub use verify::{Verdict, verify};
pub use weights::export;
