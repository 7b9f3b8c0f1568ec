//! Every integration test in one binary.

mod bad_input;
mod bad_input_cli;
mod common;
mod conformance;
mod control;
mod docs;
mod doctor;
mod experiment;
mod export;
mod forms;
mod gradcheck;
mod graphs;
mod head;
mod inspect;
mod kernels;
mod layers;
mod methods;
mod models;
mod optimized;
mod replay;
mod report;
mod roundtrip;
mod snapshot;
mod text;
mod trace;
mod train;
