"""What is learned from the method: comparisons with controls, overlap, pictures."""
