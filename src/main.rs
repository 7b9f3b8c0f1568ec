//! The `bisam` command.

fn main() -> std::process::ExitCode {
    bisam::cli::main()
}
