//! Every integration test in one binary.

mod common;
mod docs;
mod gradcheck;
mod graphs;
mod inspect;
mod models;
mod roundtrip;
mod snapshot;
