//! What people see: functions of a session and the forms that say what was asked for.

pub mod device;
pub mod generate;
pub mod mix;
pub mod notices;
pub mod plots;
pub mod run;
pub mod runs;
pub mod train;

use smolforge_engine::protocol::{Command, JobId};

/// What a click asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// A job.
    Begin(Command),
    /// Something about a job.
    Tell(JobId, Command),
}
