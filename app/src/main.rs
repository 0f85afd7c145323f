//! The `smolforge` program: with arguments the command line, without any a window; in a browser a page and its worker.

mod app;
#[cfg(not(target_arch = "wasm32"))]
mod cli;
mod files;
mod forms;
mod session;
#[cfg(not(target_arch = "wasm32"))]
#[path = "desktop.rs"]
mod shell;
#[cfg(target_arch = "wasm32")]
#[path = "browser/mod.rs"]
mod shell;
mod theme;
mod units;
mod view;

#[cfg(not(target_arch = "wasm32"))]
fn main() -> std::process::ExitCode {
    if std::env::args_os().len() > 1 { cli::main() } else { shell::open() }
}

#[cfg(target_arch = "wasm32")]
fn main() {
    shell::main();
}
