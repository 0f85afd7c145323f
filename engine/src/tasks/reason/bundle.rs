//! A submission as one `.zip`, written and read.
