"""What would make the processor wait for a GPU in a step, told without a GPU.

Tensors on the device `meta` have shapes and no values. Whatever asks for a value fails there, and
what is copied there from ordinary memory, where a GPU would be waited for, is noted.
"""

import contextlib
import traceback

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from thesis_repro import draws, gan_blocks, gans, generative, models, training
from thesis_repro.images import synthetic_images
from thesis_repro.training import Compute, Length

MADE = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)
ASKS = ("item", "nonzero", "Meta", "meta")  # words in what torch says of a value that is not there


def add_tiny(monkeypatch) -> None:
    "An architecture of two blocks, called `tiny`."
    small = models.Architecture(models.PostActivation, 8, (1, 1), (8, 8))
    monkeypatch.setitem(models.ARCHITECTURES, "tiny", small)


def place() -> str:
    "The line of the library that is running."
    lines = [f for f in traceback.extract_stack() if "/thesis_repro/" in f.filename]
    return f"{lines[-1].name}: {lines[-1].line}"


class Copies(TorchDispatchMode):
    "Notes copies from the CPU to another device that are not merely queued."

    def __init__(self, seen: list):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, operation.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            source = args[0] if name == "_to_copy" else args[1]
            to = kwargs.get("device") if name == "_to_copy" else args[0].device
            queued = kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,))
            if source.device.type == "cpu" and to and torch.device(to).type != "cpu" and not queued:
                self.seen.append(f"copy of {tuple(source.shape)}: {place()}")
        return operation(*args, **kwargs)


class Numbers(TorchFunctionMode):
    "Notes tensors on another device that are made of Python's numbers."

    def __init__(self, seen: list):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if function in MADE and made.device.type != "cpu":
            self.seen.append(f"{function.__name__}: {place()}")
        return made


@contextlib.contextmanager
def pretending(monkeypatch):
    "In this context `meta` may be computed on: it has no autocast and no generators of its own."
    own, latent, autocast = draws.Draws.torch, gan_blocks.latent, torch.autocast

    def rounded(kind, *how, **more):
        return contextlib.nullcontext() if kind == "meta" else autocast(kind, *how, **more)

    def generator(self, purpose, device="cpu"):
        return None if torch.device(device).type == "meta" else own(self, purpose, device)

    def noise(shape, generator, *how):
        return latent(shape, generator, *how) if generator else torch.zeros(shape, device="meta")

    with monkeypatch.context() as m:
        m.setattr(torch, "autocast", rounded)
        m.setattr(draws.Draws, "torch", generator)
        for module in (gan_blocks, gans, generative):
            if hasattr(module, "latent"):
                m.setattr(module, "latent", noise)
        yield


def waits(recipe, side: int = 16) -> list[str]:
    "Where a step of a recipe, early and late in a run, would make the processor wait for a GPU."
    seen, images = [], synthetic_images(8, side)
    t = training.start(recipe, images, Length(4, 8), compute=Compute("meta", progress=False))
    x, y = t.images.x_train.float() / 255, t.images.y_train
    with Numbers(seen), Copies(seen):
        for t.at.epoch in (0, 3):
            t.at.step = 0
            try:
                training.step(t, x, y)
            except (RuntimeError, NotImplementedError) as e:
                if not any(word in str(e) for word in ASKS):
                    raise
                lines = traceback.extract_tb(e.__traceback__)
                last = [f for f in lines if "/thesis_repro/" in f.filename][-1]
                seen.append(f"value: {last.name}: {last.line}")
    return seen
