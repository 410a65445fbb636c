"""What was asked of an export: how to load, what to make, and who hears of its progress."""
