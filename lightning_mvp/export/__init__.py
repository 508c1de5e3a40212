"""Export of a small model to files that need no lightning-mvp, with a report that compares it with the dense one."""
