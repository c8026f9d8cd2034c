"""A checkpoint's direction as graphs of torch.export or ONNX, for programs that have none of this package's code."""
