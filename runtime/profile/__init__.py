"""Measuring bundles side by side: latencies, memory, and where the time goes."""
