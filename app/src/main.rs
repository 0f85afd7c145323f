//! The `smolforge` program. A verb runs the command line; the window of a start without one is still to come.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
