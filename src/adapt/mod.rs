//! Makes an imported graph trainable: parameters frozen, head replaced or appended, normalization and dropout in the wanted mode,
//! logits found behind the probabilities that are made of them.

mod append;
mod freeze;
mod head;
mod logits;
mod mode;
mod random;
mod scores;

pub use append::{Appended, MASK_NAMES, append_head};
pub use freeze::{Selection, freeze};
pub use head::replace_head;
pub use logits::{Found, find_logits};
pub(crate) use mode::depends_on_inputs;
pub use mode::{BatchNorm, Mode, set_mode};
pub use random::{Edit, KEY, KEYS, noise, noise_names};
pub use scores::Meaning;
