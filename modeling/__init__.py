"""What is computed: configuration, model, decode heads, losses, tuner and converter."""
