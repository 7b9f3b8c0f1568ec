//! The command line: a file per command; only this layer prints.

mod gradcheck;
mod inspect;
mod page;

use crate::engine::{Device, Engine};
use crate::error::{Error, Result};
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Settings of every command.
#[derive(Debug, clap::Args)]
pub struct Global {
    /// Where graphs run: cpu, cuda or cuda:N.
    #[arg(long, global = true, default_value = "cpu")]
    device: Device,
    /// Threads of ONNX Runtime.
    #[arg(long, global = true)]
    threads: Option<usize>,
    /// The ONNX Runtime library.
    #[arg(long, global = true, value_name = "PATH")]
    ort: Option<PathBuf>,
    /// Print results only.
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Print more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Print one JSON document.
    #[arg(long, global = true)]
    json: bool,
}

impl Global {
    /// The engine these settings ask for.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn engine(&self) -> Result<Engine> {
        Engine::new(self.ort.as_deref(), self.threads, self.device)
    }
}

#[derive(Debug, Parser)]
#[command(name = "bisam", version, about)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(inspect::Args),
    Gradcheck(gradcheck::Args),
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Command::Inspect(args) => inspect::run(args, &cli.global),
        Command::Gradcheck(args) => gradcheck::run(args, &cli.global),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => report(&e),
    }
}

fn report(e: &Error) -> ExitCode {
    eprintln!("error: {e}");
    if let Some(hint) = e.hint_text() {
        eprintln!("hint: {hint}");
    }
    ExitCode::FAILURE
}
