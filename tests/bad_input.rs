//! Files that are no models: an error that names the cause, never a panic.
