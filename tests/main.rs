//! Every integration test in one binary.

mod bad_input;
mod common;
mod gradcheck;
mod models;
mod replay;
mod train;
