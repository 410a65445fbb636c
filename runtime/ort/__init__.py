"""ONNX Runtime: sessions opened from bundles, states in host memory, steps bound to them."""
