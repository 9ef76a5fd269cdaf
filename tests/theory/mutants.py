"""The theory's modules, executed afresh with one formula changed, and the changes to try."""

import ast
import importlib.util
import signal
import types
import warnings
from dataclasses import dataclass
from pathlib import Path

MODULES = ("powers", "constants", "rules", "smoothness", "sampling", "convergence", "adapted", "limits")
# Functions that refuse bad input and have no formulas.
OUTSIDE = {"check_real", "check_whole", "_check", "__post_init__", "contracted"}
SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}


def trees():
    return {name: ast.parse(source(name)) for name in MODULES}


def source(module):
    return Path(importlib.util.find_spec(f"adaptax.theory.{module}").origin).read_text()


def loaded(parts):
    """All names of the modules in one namespace; their imports from each other come from these trees too."""
    made = {}
    for name, tree in parts.items():
        made[name] = module = types.ModuleType(f"mutated_{name}")
        body = []
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("adaptax.theory"):
                source = made.get(node.module.split(".")[-1])
                for alias in node.names:
                    setattr(module, alias.name, made[alias.name] if source is None else getattr(source, alias.name))
            else:
                body.append(node)
        exec(compile(ast.Module(body, []), name, "exec"), vars(module))
    names = {key: value for module in made.values() for key, value in vars(module).items() if not key.startswith("__")}
    return types.SimpleNamespace(**names)


@dataclass
class Mutation:
    """One change of one node: `apply` puts it in place, `undo` takes it back."""

    module: str
    line: int
    what: str
    parent: ast.AST
    field: str
    index: int | None
    new: ast.AST

    def __str__(self):
        return f"{self.module}.py:{self.line}: {self.what}"

    def apply(self):
        self.old = self._put(self.new)

    def undo(self):
        self._put(self.old)

    def _put(self, node):
        if self.index is None:
            old = getattr(self.parent, self.field)
            setattr(self.parent, self.field, node)
        else:
            old = getattr(self.parent, self.field)[self.index]
            getattr(self.parent, self.field)[self.index] = node
        return old


def places(node, inside=False):
    """All (parent, field, index, child) within functions and defaults of classes, without docstrings, refusals and types."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.Raise, ast.JoinedStr)):
                continue
            if isinstance(child, ast.FunctionDef) and child.name in OUTSIDE:
                continue
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id in OUTSIDE:
                continue
            within = inside or isinstance(child, (ast.FunctionDef, ast.ClassDef))
            if inside:
                yield node, field, index, child
            yield from places(child, within)


def changes(node):
    """(what, new node) for one node."""
    text = ast.unparse(node)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = node.value
        for new in {2 * value, value + 1, value / 2 if value % 2 else value // 2, value - 1} - {value}:
            yield f"{text} -> {new}", ast.Constant(new)
    if isinstance(node, ast.BinOp):
        kind = type(node.op)
        if kind in SWAPS:
            yield f"{text}: swap", ast.BinOp(node.left, SWAPS[kind](), node.right)
            yield f"{text}: left only", node.left
            yield f"{text}: right only", node.right
        if kind in (ast.Mult, ast.Div):
            for factor in (2.0, 0.5):
                yield f"{text}: times {factor}", ast.BinOp(node, ast.Mult(), ast.Constant(factor))
        if kind is ast.Pow:
            yield f"{text}: base only", node.left
            for by in (1, -1):
                yield (
                    f"{text}: power {by:+d}",
                    ast.BinOp(node.left, ast.Pow(), ast.BinOp(node.right, ast.Add(), ast.Constant(by))),
                )
    if isinstance(node, ast.Attribute) and node.attr == "steps" and isinstance(node.ctx, ast.Load):
        for by in (1, -1):
            yield f"{text} {by:+d}", ast.BinOp(node, ast.Add(), ast.Constant(by))
    for old, new in (("before", "p"), ("p", "q"), ("q", "p"), ("drift", "shift"), ("shift", "drift"), ("r", "p")):
        if isinstance(node, ast.Attribute) and node.attr == old and isinstance(node.ctx, ast.Load):
            yield f"{text} -> {new}", ast.Attribute(node.value, new, ast.Load())


def mutations(parts):
    """All mutations but a shift by nothing, which would make a loop endless."""
    for module, tree in parts.items():
        for parent, field, index, child in list(places(tree)):
            shift = isinstance(getattr(parent, "op", None), ast.RShift)
            for what, new in changes(child):
                if not (shift and isinstance(new, ast.Constant) and new.value <= 0):
                    placed = ast.fix_missing_locations(ast.copy_location(new, child))
                    yield Mutation(module, child.lineno, what, parent, field, index, placed)


def killer(parts, mutation, checks, seconds=10):
    """The name of the first check that fails with the mutated theory, or None. An endless loop fails too."""

    def late(*_):
        raise TimeoutError

    mutation.apply()
    # Processor time, so that other work on the machine does not make a loop look endless.
    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    name = "loading"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            t = loaded(parts)
            for name in checks:
                checks[name](t)
    except Exception:
        return name
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        mutation.undo()
    return None
