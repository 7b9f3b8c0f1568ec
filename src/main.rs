//! The `bisam` command.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match bisam::cli::run(&bisam::cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(hint) = error.hint_text() {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}
