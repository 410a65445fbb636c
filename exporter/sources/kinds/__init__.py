"""What can be exported, one file for each kind of source: how to tell it, and how to load it."""
