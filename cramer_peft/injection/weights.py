"""Looks at how a weight is stored and who reads it, before a mask is put on its module."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

# Methods that read weights once, to fill or to tie them; not those of a call.
_SETTING_UP = re.compile(r"__|init|reset|tie|load|save|state_dict|_apply|extra_repr")
# A read of these says nothing of the weight's values.
_OF_NO_VALUE = {"dtype", "device", "shape", "size", "dim", "ndim", "numel", "requires_grad", "is_cuda", "is_meta"}
_ANY = "*"  # a child of a container whose key is known in the call alone


def unusual_weights(module: nn.Module) -> str | None:
    """Return why the weights of a module are not plain tensors that are there, or None.

    Offloaded weights are not there until accelerate brings them for a call, sharded ones are there in part, and
    quantised ones are numbers of another kind behind a tensor's face.
    """
    for name, value in module.named_parameters():
        if isinstance(value, DTensor):
            return "sharded (DTensor): put the masks on before fully_shard"
        if value.is_meta and hasattr(module, "_hf_hook"):
            return "offloaded by accelerate: put the masks on before the model is offloaded"
        if type(value.data) is not Tensor:
            kind = type(value.data).__name__
            return f"quantised or wrapped (parameter {name!r} is a {kind}): put the masks on before that"
    return None


def weight_reader(name: str, modules: dict[str, nn.Module]) -> str | None:
    """Return which method of a module above ``name`` reads its parameters itself, or None.

    The classes' source is read, not run; a class without source is not known to read any.
    """
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        owner = modules.get(".".join(parts[:depth]))
        if owner is None:
            continue
        for read, method in _reads(type(owner)):  # type: ignore[arg-type]
            path = read[:-1]
            same = len(path) == len(parts) - depth and all(
                found in (part, _ANY) for found, part in zip(path, parts[depth:], strict=True)
            )
            if same and (read[-1] == _ANY or read[-1] in modules[name]._parameters):
                return method
    return None


@functools.cache
def _reads(owner: type) -> tuple[tuple[tuple[str, ...], str], ...]:
    """Return the paths of attributes, from self, that methods of a class read for their values, with the method."""
    found: list[tuple[tuple[str, ...], str]] = []
    for base in owner.__mro__:
        if base is nn.Module or not issubclass(base, nn.Module) or base.__module__.startswith("torch.nn."):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        for method in ast.walk(tree):
            if isinstance(method, ast.FunctionDef) and not _SETTING_UP.search(method.name):
                where = f"{base.__name__}.{method.name}"
                found += [(path, where) for path in _Reader(method).paths() if len(path) > 1]
    return tuple(found)


class _Reader:
    """The attributes of ``self`` that one method reads, followed through local names, loops and subscripts."""

    def __init__(self, method: ast.FunctionDef) -> None:
        self._method = method
        self._names: dict[str, tuple[str, ...]] = {method.args.args[0].arg: ()} if method.args.args else {}
        for node in ast.walk(method):
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                self._bind(node.targets[0], node.value)
            elif isinstance(node, ast.NamedExpr):
                self._bind(node.target, node.value)
            elif isinstance(node, (ast.For, ast.comprehension)):
                self._bind_loop(node.target, node.iter)

    def paths(self) -> list[tuple[str, ...]]:
        """Return the paths that are read for more than their type, shape or presence."""
        harmless = set()
        for node in ast.walk(self._method):
            if isinstance(node, ast.Attribute) and (node.attr in _OF_NO_VALUE or isinstance(node.ctx, ast.Store)):
                harmless |= {id(node.value), id(node)}
            elif isinstance(node, ast.Compare) and all(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops):
                harmless |= {id(node.left), *map(id, node.comparators)}
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "hasattr", "type"):
                harmless |= set(map(id, node.args))
        reads = [node for node in ast.walk(self._method) if isinstance(node, (ast.Attribute, ast.Call))]
        found = [self._path(node) for node in reads if id(node) not in harmless]
        return [path for path in found if path is not None]

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for each, its_value in zip(target.elts, value.elts, strict=False):
                self._bind(each, its_value)
        path = self._path(value)
        if isinstance(target, ast.Name) and path:
            self._names[target.id] = path

    def _bind_loop(self, target: ast.expr, iterated: ast.expr) -> None:
        name = getattr(iterated.func, "id", None) if isinstance(iterated, ast.Call) else None
        if isinstance(iterated, ast.Call) and isinstance(target, ast.Tuple) and name in ("enumerate", "zip"):
            targets = target.elts[1:] if name == "enumerate" else target.elts
            for each, its_iterated in zip(targets, iterated.args, strict=False):
                self._bind_loop(each, its_iterated)
            return
        if isinstance(iterated, ast.Call) and isinstance(iterated.func, ast.Attribute):
            method = iterated.func.attr
            path = self._path(iterated.func.value) if method in ("values", "items", "children") else None
            target = target.elts[-1] if method == "items" and isinstance(target, ast.Tuple) else target
        elif isinstance(iterated, ast.Call) and name == "reversed":
            path = self._path(iterated.args[0])
        else:
            path = self._path(iterated)
        if isinstance(target, ast.Name) and path:
            self._names[target.id] = (*path, _ANY)

    def _path(self, node: ast.expr) -> tuple[str, ...] | None:
        if isinstance(node, ast.NamedExpr):
            node = node.value
        if isinstance(node, ast.Name):
            return self._names.get(node.id)
        if isinstance(node, ast.Attribute):
            before, key = self._path(node.value), node.attr
        elif isinstance(node, ast.Subscript):
            known = isinstance(node.slice, ast.Constant) and node.slice.value != -1
            before, key = self._path(node.value), str(node.slice.value) if known else _ANY  # type: ignore[attr-defined]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr" and len(node.args) > 1:
            named = isinstance(node.args[1], ast.Constant)
            before, key = self._path(node.args[0]), str(node.args[1].value) if named else _ANY  # type: ignore[attr-defined]
        else:
            return None
        return None if before is None else (*before, key)
