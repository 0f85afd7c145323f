//! `report.html` of a task: its funnel, accuracies, samples and sizes.
