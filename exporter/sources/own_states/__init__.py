"""Sources that carry states themselves: which inputs become which outputs, and how they start."""
