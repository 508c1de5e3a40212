"""What is kept: the pruned models of many source tasks. Needs no torch."""

from lightning_mvp.zoo.entry import DamagedEntryError, ZooEntry, config_hash, entry_id
from lightning_mvp.zoo.entry_file import read_entry, write_entry
from lightning_mvp.zoo.zoo import ModelZoo

__all__ = [
    "DamagedEntryError",
    "ModelZoo",
    "ZooEntry",
    "config_hash",
    "entry_id",
    "read_entry",
    "write_entry",
]
