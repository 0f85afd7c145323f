//! A full disk, or a browser that grants no more space: the run waits until people have made room.

use super::Run;
use crate::control::Flow;
use crate::error::{Error, Result};
use crate::train::log::{RunLog, is_later};

impl Run<'_> {
    /// Waits until there is room for what could not be written, and writes it and a checkpoint; nothing is lost then.
    ///
    /// # Errors
    /// `full` where the run is to stop instead; what else goes wrong with its files.
    pub(super) async fn wait_for_room(&mut self, mut full: Error) -> Result<()> {
        loop {
            if self.control.hold(format!("{full}: the run waits and has lost nothing")).await == Flow::Stop {
                return Err(full);
            }
            match self.write_again().await {
                Err(again @ Error::DiskFull { .. }) => full = again,
                result => return result,
            }
        }
    }

    /// Cuts the log back to what is whole in it, as a resumed run does, and adds what it lacks.
    async fn write_again(&mut self) -> Result<()> {
        let (step, due) = (self.state.step, self.state.due);
        self.log = RunLog::resume(self.store, &self.config.out, &self.config.to_yaml(), self.config.log_every, step, due).await?;
        self.unwritten.retain(|event| !is_later(event, step, due));
        self.stage = None; // told again where the cut log has it no more
        self.write_down()?;
        self.save().await
    }
}
