"""What goes in and what comes out: pictures, names, data sets, windows, metrics and the pipeline."""
