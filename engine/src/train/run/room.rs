//! A full disk, or a browser that grants no more space: the run waits until people have made room.

use super::Run;
use crate::control::Flow;
use crate::error::{Error, Result};

impl Run<'_> {
    /// Writes; where there is no room it waits until the shell says to go on or to stop, and writes again.
    ///
    /// # Errors
    /// What `write` says; [`Error::DiskFull`] only of a run that is to stop.
    pub(super) async fn with_room<T>(&mut self, mut write: impl AsyncFnMut(&mut Self) -> Result<T>) -> Result<T> {
        loop {
            match write(self).await {
                Err(full @ Error::DiskFull { .. }) if self.control.flow() == Flow::Continue => {
                    self.control.hold(format!("{full}: the run waits and has lost nothing")).await;
                }
                result => return result,
            }
        }
    }
}
