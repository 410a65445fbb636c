"""A source becomes one graph in training form, compared with what it was made from."""
