//! The one error type: what went wrong, where, and what to do about it.

use std::cell::Cell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;

/// Result of every fallible function in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, with the place it happened at and a hint.
///
/// Layers add what they know on the way up: a rule gives the cause, the driver adds the node, the reader adds the file.
#[derive(Debug, Clone)]
pub struct Error(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    cause: String,
    node: Option<String>,
    file: Option<PathBuf>,
    hint: Option<String>,
}

impl Error {
    /// An error with its cause: one sentence, lower case, without a full stop.
    pub fn new(cause: impl Into<String>) -> Self {
        Self(Box::new(Inner { cause: cause.into(), node: None, file: None, hint: None }))
    }

    /// Names the node (`Conv \`/layer1/conv\``); the innermost name wins.
    pub fn at_node(mut self, op: &str, name: &str) -> Self {
        self.0.node.get_or_insert_with(|| format!("{op} `{name}`"));
        self
    }

    /// Names the file; the innermost name wins.
    pub fn in_file(mut self, file: impl AsRef<Path>) -> Self {
        self.0.file.get_or_insert_with(|| file.as_ref().to_path_buf());
        self
    }

    /// Adds what the user can do; the innermost hint wins.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Takes over the hint of `other`, when this error has none.
    pub fn hint_from(self, other: &Error) -> Self {
        match &other.0.hint {
            Some(hint) => self.hint(hint.clone()),
            None => self,
        }
    }

    /// Adds to the cause.
    pub fn and(mut self, more: &str) -> Self {
        self.0.cause += more;
        self
    }

    /// Takes over node and file of `other`, where this error has none.
    pub fn place_from(mut self, other: &Error) -> Self {
        self.0.node = self.0.node.or_else(|| other.0.node.clone());
        self.0.file = self.0.file.or_else(|| other.0.file.clone());
        self
    }

    /// The cause alone, without place and hint.
    pub fn cause(&self) -> &str {
        &self.0.cause
    }

    /// The hint, if there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

/// `FILE: NODE: CAUSE`, without the hint.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.0.file {
            write!(f, "{}: ", file.display())?;
        }
        if let Some(node) = &self.0.node {
            write!(f, "{node}: ")?;
        }
        f.write_str(&self.0.cause)
    }
}

impl std::error::Error for Error {}

/// Early return with a formatted [`Error`].
#[macro_export]
macro_rules! bail {
    ($($arg:tt)*) => { return Err($crate::error::Error::new(format!($($arg)*))) };
}

/// Adds the file to an I/O error.
pub trait IoContext<T> {
    /// Turns the error into an [`Error`] that names `file`.
    ///
    /// # Errors
    /// The I/O error, when there is one.
    fn file(self, file: impl AsRef<Path>) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn file(self, file: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::new(e.to_string()).in_file(file))
    }
}

/// What `call` into another library returns; none where that panics, about which nothing is printed.
pub(crate) fn catch_panic<T>(call: impl FnOnce() -> T) -> Option<T> {
    thread_local! {
        static QUIET: Cell<bool> = const { Cell::new(false) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    QUIET.set(false);
    result.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_place_wins_and_is_printed_in_order() {
        let e = Error::new("no rule").at_node("Foo", "n1").at_node("Bar", "n2").in_file("a.onnx").hint("h");
        assert_eq!(e.to_string(), "a.onnx: Foo `n1`: no rule");
        assert_eq!(e.hint_text(), Some("h"));
    }
}
