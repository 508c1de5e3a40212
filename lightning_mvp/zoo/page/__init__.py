"""A zoo as one page for a browser: entries to sort and search, and charts of what they have in common. Needs no torch.

The page is one file. It holds its data, its own scripts and the charting library, so that it opens without a network,
and its content security policy forbids it to load anything.
"""

from lightning_mvp.zoo.page.data import page_data
from lightning_mvp.zoo.page.render import charting_library, render

__all__ = ["charting_library", "page_data", "render"]
