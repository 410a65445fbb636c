"""TensorRT engines: building them from a bundle, and the plugin that launches our kernels."""
