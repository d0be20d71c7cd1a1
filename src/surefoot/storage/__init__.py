"""Files: run directories, checkpoints, locks, loggers, compiled programs."""
