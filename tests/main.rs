//! Every integration test in one binary.

mod common;
mod gradcheck;
mod models;
mod replay;
