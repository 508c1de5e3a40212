"""Every name of Torch-Pruning that its documentation does not give and that the package uses, and what it is for.

``tests/test_internals.py`` fails when one of them is gone.
"""

from __future__ import annotations

from typing import Any

import torch_pruning as tp
from torch_pruning.dependency import index_mapping, shape_infer

# The node of a dependency graph that stands for what the model returns: channels that reach it are its output.
OutputOp = tp.ops._OutputOp

# How channels are renumbered on their way through an operation, each read by `channel_sets._mapped`.
Flatten = index_mapping._FlattenIndexMapping  # each channel becomes `_stride` features in a row
Concat = index_mapping._ConcatIndexMapping  # channels come behind those of other tensors, from `offset[0]` on
Split = index_mapping._SplitIndexMapping  # a part of the channels, from `offset[0]` to `offset[1]`
Slice = index_mapping._SliceIndexMapping  # a part of the channels, with `start`, `end` and `step`

# The last two steps by which a dependency graph is built, which `dependency_graph` repeats node by node.
init_shape_information = shape_infer.init_shape_information
update_index_mapping = index_mapping.update_index_mapping


def stride_of(mapping: Any) -> int:
    """How many features each channel becomes where a tensor is flattened."""
    return int(mapping._stride)
