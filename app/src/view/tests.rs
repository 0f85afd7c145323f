//! Views as people use them.
