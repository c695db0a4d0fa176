"""Training: arguments, configuration files, data, the Trainer, evaluation and the folder of a run."""
