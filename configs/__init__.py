"""Configurations of training and evaluation: one YAML file per method, data set and setting."""
