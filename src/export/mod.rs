//! Trained weights back into the user's own file, and the proof that other runtimes read it.

mod inference;
mod init;
mod metadata;
mod verify;
mod weights;

pub use init::fresh;
pub use metadata::{read_classes, write_classes};
pub use verify::{OutputDifference, Verdict, verify};
pub use weights::{export, with_values};
