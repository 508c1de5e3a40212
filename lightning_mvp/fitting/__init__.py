"""A whole fit in one call: the Trainer with our callbacks, and zoos that grow by such fits."""
