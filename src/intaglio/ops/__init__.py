"""Operators that carry state or that ONNX lacks: meaning, ONNX form and samples, one file each."""
