//! The reference's grader: its parts, bounds, limits and points.
