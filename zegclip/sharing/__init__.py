"""What leaves the machine: folders for the Hub, model cards and ONNX files."""
