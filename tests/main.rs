//! Every integration test in one binary.

mod bad_input;
mod common;
mod docs;
mod doctor;
mod gradcheck;
mod graphs;
mod inspect;
mod layers;
mod models;
mod replay;
mod roundtrip;
mod snapshot;
mod train;
