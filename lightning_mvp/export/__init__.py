"""What leaves the house: a small model as files that need no lightning-mvp, and what it costs beside the dense one."""
