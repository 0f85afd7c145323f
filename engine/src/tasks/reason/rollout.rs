//! Rejection sampling: a teacher answers every question several times, and what is right is kept.
