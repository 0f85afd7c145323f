//! Ctrl-C, SIGTERM and SIGHUP: the first stops the job in good order, the second the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use super::progress::Screen;

/// Exit code of a program that Ctrl-C ended: 128 + SIGINT.
const INTERRUPTED: i32 = 130;

#[expect(clippy::disallowed_methods, reason = "two interrupts mean at once; checkpoints are written atomically")]
fn exit() -> ! {
    std::process::exit(INTERRUPTED)
}

/// Calls `stop` at an interrupt, or ends the process if `again` is set by then, as the first one does; `saves` tells
/// whether the job then writes a checkpoint.
pub fn install(screen: &Screen, saves: bool, again: Arc<AtomicBool>, stop: impl Fn() + Send + 'static) -> anyhow::Result<()> {
    let screen = screen.handle();
    ctrlc::set_handler(move || {
        if again.swap(true, Ordering::Relaxed) {
            screen.clear();
            exit();
        }
        stop();
        screen.line(if saves {
            "finishing the micro-batch and saving … (Ctrl-C again: stop at once, without saving)"
        } else {
            "stopping … (Ctrl-C again: at once)"
        });
    })
    .context("catching Ctrl-C")
}
