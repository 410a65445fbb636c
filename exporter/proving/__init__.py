"""What a source computes, and whether a bundle computes the same."""
