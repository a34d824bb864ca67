"""Functions of tensors compiled ahead of time (torch.export and AOTInductor), kept on disk for all runs of a user."""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import secrets
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsdbench.backends.aot.gemm import FUSED, decompositions, shims
from rsdbench.errors import UsageError
from rsdbench.sources import syntax

DIGEST = 64  # characters
SMALL_VOCABULARY = 8192  # tokens up to which a second thread or another copy of a distribution does not count
# patterns would put a product and its bias into one call again, which copies the bias before it multiplies
OPTIONS = {"pattern_matcher": False}


class Library:
    """A compiled function: a list of tensors in, a list of tensors out.

    It takes sizes as they come, but the strides of what it was exported with on trust: inputs must be contiguous.
    """

    def __init__(self, path: Path) -> None:
        self.package = torch._inductor.aoti_load_package(str(path))
        self.run = self.package.loader.boxed_run  # calling the package reads its description anew each time, in 0.03 ms

    def set_weights(self, module: torch.nn.Module) -> None:
        """Let the library read a module's weights where they lie."""
        weights = weights_of(module)
        self.weights = {name: weights[name] for name in self.package.get_constant_fqns()}  # must not go
        self.package.load_constants(self.weights, check_full_update=True, user_managed=True)


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by all of their names, those of a module's state and others."""
    named = *module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)
    return {name: weight.detach() for name, weight in named}


@dataclass(frozen=True, eq=False)
class Recipe:
    """A module's forward that is to be a library.

    title: what it is, for people; parts: what its code depends on beside this machine and its versions of libraries;
    inputs: examples, in which sizes of 0 and 1 would be taken as fixed; sizes: which dimensions of each may differ, as
    `dynamic_shapes` of `torch.export.export`; small: whether it is a small model, as `products.is_small`; options: of
    Inductor; during: what holds while it is exported.
    """

    title: str
    name: str
    parts: Iterable[object]
    module: torch.nn.Module
    inputs: tuple
    sizes: tuple
    small: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    during: Callable[[], AbstractContextManager[None]] = nullcontext

    @cached_property
    def path(self) -> Path:
        """Where the library lies when it is built."""
        return file_of(self.name, self.parts, self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """Options of Inductor, with those of small models."""
        return self.options | FUSED if self.small else self.options

    def library(self) -> Library:
        """Load the library, with the module's weights; build it first, if no earlier process has left it on disk.

        Raises:
            UsageError: as in `build`; or the one on disk may be another user's.
        """
        library = None
        if self.path.exists() and is_whole(self.path):
            with suppress(RuntimeError):  # a damaged file is written anew
                library = Library(self.path)
        if library is None:
            self.build()
            library = Library(self.path)
        if weights_of(self.module):
            library.set_weights(self.module)
        return library

    def build(self) -> None:
        """Export, compile, and keep the library on disk.

        Raises:
            UsageError: there is no C++ compiler, the code cannot be exported, or the library cannot be kept on disk.
        """
        if not compiler_at_hand():
            raise UsageError("compile=true needs a C++ compiler: install g++, set $CXX, or take compile=false")
        path = self.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            check_owner(path.parent)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder, self.during():
                sealed(self.compile(Path(folder) / path.name)).replace(path)
        except UsageError:
            raise
        except OSError as error:
            raise UsageError(
                f"compiled code cannot be kept in '{path.parent}' ({error.strerror or error}): make room there, set "
                "$XDG_CACHE_HOME to another folder, or take compile=false"
            ) from None
        except Exception as error:  # of any kind: exporting runs all of the module's own code
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UsageError(f"{self.name} cannot be compiled ({reason}): take compile=false") from error

    def compile(self, path: Path) -> Path:
        """Export and compile into a file."""
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(self.module, self.inputs, dynamic_shapes=self.sizes, strict=False)
            exported = exported.run_decompositions(decompositions(self.small))
            options = OPTIONS | shims() | self.settings
            return Path(
                torch._inductor.aoti_compile_and_package(exported, package_path=str(path), inductor_configs=options)
            )


def file_of(name: str, parts: Iterable[object], options: dict[str, Any]) -> Path:
    """Where a library lies; its name ends in a hash of what it depends on, versions, this processor and threads."""
    here = torch.__version__, version("transformers"), processor(), torch.get_num_threads(), sorted(options.items())
    key = hashlib.sha256(repr((*parts, *here)).encode()).hexdigest()[:16]
    return cache_folder() / f"{name}-{key}.pt2"


def check_owner(path: Path) -> None:
    """See that nobody else can have put a file there: it is native code, which runs when it is loaded.

    Raises:
        UsageError: somebody can.
    """
    found = path.stat()
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        whose = "belongs to another user" if found.st_uid != os.getuid() else "can be written by others"
        raise UsageError(
            f"compiled code in '{path}' is not loaded, because it {whose}: delete it, or set $XDG_CACHE_HOME to a "
            "folder of your own"
        )


def sealed(path: Path) -> Path:
    """A library's file with a digest of its contents as the comment of the archive that it is."""
    contents = path.read_bytes()[:-2]  # what is left out is the length of a comment, 0
    digest = hashlib.sha256(contents).hexdigest().encode()
    path.write_bytes(contents + len(digest).to_bytes(2, "little") + digest)
    path.chmod(0o600)
    return path


def is_whole(path: Path) -> bool:
    """Whether a library's file has the contents that its digest names. A damaged one is written anew.

    Raises:
        UsageError: it, or its folder, may be another user's.
    """
    for own in (path.parent, path):
        check_owner(own)
    contents = path.read_bytes()
    return hashlib.sha256(contents[: -2 - DIGEST]).hexdigest().encode() == contents[-DIGEST:]


def identity(thing: Any) -> object:
    """All that tells a rule or a strategy from others, on which its library depends.

    The syntax of the file that it is in, and what it holds: a closure's values, a partial's arguments, an object's own.
    """
    if isinstance(thing, partial):
        return "partial", identity(thing.func), identity(list(thing.args)), identity(thing.keywords)
    if isinstance(thing, dict):
        return "dict", [(key, identity(value)) for key, value in thing.items()]
    if isinstance(thing, list | tuple):
        return "list", [identity(x) for x in thing]
    if isinstance(thing, Tensor):
        return "tensor", thing.dtype, thing.tolist()
    if isinstance(thing, type):
        return thing.__module__, thing.__qualname__, [syntax_of_module(own) for own in thing.__mro__[:-1]]
    if inspect.isfunction(thing):
        held = [cell.cell_contents for cell in getattr(thing, "__closure__", None) or ()]
        defaults = identity(list(getattr(thing, "__defaults__", None) or ()))
        return thing.__module__, thing.__qualname__, syntax_of_module(thing), identity(held), defaults
    if hasattr(thing, "__dict__"):
        return identity(type(thing)), identity(vars(thing))
    return repr(thing)


def syntax_of_module(thing: Any) -> str:
    """The syntax of the file that a function or a class is in; of one that has no file, it is compiled each time."""
    try:
        return syntax(inspect.getsource(inspect.getmodule(thing)))
    except (OSError, TypeError):
        return secrets.token_hex()


@lru_cache
def processor() -> str:
    """What the compiler takes from the processor it runs on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}"


def cache_folder() -> Path:
    """Where libraries are kept, for all runs of a user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rsdbench" / "compiled"


def compiler_at_hand() -> bool:
    """Whether there is a C++ compiler to call."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None
