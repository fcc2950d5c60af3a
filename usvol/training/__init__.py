"""Train a task: cases, splits by patient, the Lightning loop."""
