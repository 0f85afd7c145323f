//! The `smolforge` program: with arguments the command line, without any a window.

mod app;
mod cli;
mod files;
mod forms;
mod session;
mod theme;
mod units;
mod view;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().len() > 1 { cli::main() } else { app::open() }
}
