"""A device that is not the CPU, for machines that have none: it computes there, and keeps to the rules of a GPU.

A tensor on it holds its numbers in one of the CPU. Where a GPU would refuse tensors of two devices it does, and a bit
sooner: a GPU takes an index that lies on the CPU, and waits for it. To PyTorch it is the device `meta`, the only other
one that every build knows.
"""

from contextlib import contextmanager, nullcontext
from importlib import import_module

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("meta")
ACROSS = ("aten::to", "aten::_to_copy", "aten::copy_")


class OnDevice(torch.Tensor):
    """A tensor on the device; `inner` has its numbers."""

    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=DEVICE, **layout)

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"OnDevice({self.inner!r})"

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        assert (self.shape, self.dtype) == (other.shape, other.dtype), "PyTorch's own setter knows of no inner tensor"
        self.inner = other.inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


class Making(TorchDispatchMode):
    """Within the block tensors can be made on the device and sent to it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def compute(function, args, kwargs):
    """What the function gives, on the device that its arguments, or its own, say."""
    name = function._schema.name
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    owners = {id(leaf.inner): leaf for leaf in given if isinstance(leaf, OnDevice)}
    strangers = [leaf for leaf in given if not isinstance(leaf, OnDevice) and leaf.ndim]
    if owners and strangers and name not in ACROSS:
        raise RuntimeError(f"{name}: tensors on two devices, of which {tuple(strangers[0].shape)} on the CPU")
    wanted = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)]
    there = wanted[0] == DEVICE if wanted else isinstance(args[0], OnDevice) if name == "aten::copy_" else bool(owners)
    args, kwargs = tree_map_only(OnDevice, lambda leaf: leaf.inner, (args, kwargs))
    args, kwargs = tree_map_only(torch.device, lambda _: torch.device("cpu"), (args, kwargs))
    found = function(*args, **kwargs)
    if not there:
        return found
    return tree_map_only(torch.Tensor, lambda leaf: owners[id(leaf)] if id(leaf) in owners else OnDevice(leaf), found)


@contextmanager
def device():
    """Within the block there is a device beside the CPU; it has no autocast."""
    with pytest.MonkeyPatch.context() as patch, Making():
        patch.setattr("torch.__future__._overwrite_module_params_on_conversion", True)
        patch.setattr("torch.autocast", lambda kind, **_: nullcontext())
        asked = torch.is_autocast_enabled
        patch.setattr("torch.is_autocast_enabled", lambda *kind: kind != (DEVICE.type,) and asked(*kind))
        known = import_module("torch.optim.optimizer")
        fused = [*known._get_fused_kernels_supported_devices(), DEVICE.type]
        patch.setattr(known, "_get_fused_kernels_supported_devices", lambda: fused)
        yield DEVICE
