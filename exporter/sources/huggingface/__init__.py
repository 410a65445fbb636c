"""Directories in the form of Hugging Face: what lies in them, and the library's own module."""
