"""Interpret a module's code on symbols: which projections it calls, and on what."""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

PROJECTIONS = (nn.Linear, Conv1D)
DROPOUTS = (functional.dropout, torch.dropout)
SAME = {"to", "contiguous"}  # methods of a tensor that leave its numbers
ELEMENTWISE = {"gelu", "silu", "relu", "tanh", "sigmoid", "mish", "leaky_relu", "elu", "softplus"}


@dataclass(frozen=True, eq=False)
class Symbol:
    """A value that is not understood: an argument, or the result of some other operation.

    Args:
        name: of the operation; "" for an argument.
        parts: what went in.
    """

    name: str = ""
    parts: tuple[Symbol, ...] = ()


@dataclass(frozen=True, eq=False)
class Projected(Symbol):
    """The output of a projection: its name, and the one input."""


@dataclass(frozen=True, eq=False)
class Half(Symbol):
    """A half of the last dimension.

    Args:
        index: 0 for the first.
    """

    index: int = 0


@dataclass(frozen=True, eq=False)
class Product(Symbol):
    """An elementwise product of two."""


@dataclass(frozen=True, eq=False)
class Activated(Symbol):
    """The output of an elementwise function.

    Args:
        function: what is called; `name` is the module or attribute, "" for a global function.
    """

    function: Callable[[Tensor], Tensor] = functional.relu


@dataclass(frozen=True, eq=False)
class Dropped(Symbol):
    """The output of a dropout.

    Args:
        probability: in training.
        module: whether `name` is a module; else it is the attribute that holds the probability, ""
            if none does.
    """

    probability: float = 0.0
    module: bool = False


@functools.cache
def code_of(function: Callable[..., Any]) -> ast.FunctionDef | None:
    """Parse a function; None if its source is not there."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        return None
    tree = ast.parse(source).body[0]
    return tree if isinstance(tree, ast.FunctionDef) else None


def is_elementwise(function: Callable[[Tensor], Tensor]) -> bool:
    """Tell whether a function of a tensor treats each of its numbers alone."""
    x = torch.linspace(-3.0, 3.0, 14, device="cpu").reshape(2, 7)
    try:
        with torch.no_grad():
            y = function(x)
            return bool(
                y.shape == x.shape
                and torch.equal(function(x.flip(1)), y.flip(1))
                and torch.allclose(function(x[:1, 2:3]), y[:1, 2:3])
            )
    except Exception:  # not a function of one tensor at all
        return False


def is_activation(module: object) -> bool:
    """Tell whether a module is an elementwise function without parameters."""
    return (
        isinstance(module, nn.Module)
        and not isinstance(module, (nn.Identity, nn.Dropout, nn.modules.dropout._DropoutNd))
        and not any(True for _ in module.parameters())
        and type(module).forward is not nn.Module.forward
        and is_elementwise(module)
    )


def methods_of(kind: type[nn.Module]) -> list[str]:
    """Name the functions that a class (not torch's own) defines, `forward` first."""
    names = {
        name: None
        for base in kind.__mro__
        if base.__module__ not in ("torch.nn.modules.module", "builtins")
        for name, function in vars(base).items()
        if inspect.isfunction(function) and not name.startswith("__")
    }
    return sorted(names, key=lambda name: name != "forward")


@dataclass
class Interpreter:
    """Run a function of a module on symbols.

    Args:
        owner: whose function.
        values: of the local names.
        projected: every call of a projection, in order.
        dropped: every call of a dropout.
        returned: what it returns.
        first: the first argument.
        alone: whether no other argument is needed.
        touched: children of which attributes are read.
    """

    owner: nn.Module
    values: dict[str, Any] = field(default_factory=dict)
    projected: list[Projected] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    returned: list[Symbol] = field(default_factory=list)
    first: Symbol = field(default_factory=Symbol)
    alone: bool = True
    touched: set[str] = field(default_factory=set)
    globals: dict[str, Any] = field(default_factory=dict)

    def function(self, name: str) -> None:
        """Interpret a function of the owner from its arguments on."""
        function = inspect.unwrap(getattr(type(self.owner), name))
        code = code_of(function)
        if code is None:
            return
        self.globals = getattr(function, "__globals__", {})
        given = [a.arg for a in code.args.args if a.arg != "self"]
        for argument in [*given, *(a.arg for a in code.args.kwonlyargs)]:
            self.values[argument] = Symbol()
        if given:
            self.values[given[0]] = self.first
        self.alone = len(given) - len(code.args.defaults) == 1
        self.run(code.body)

    def run(self, body: list[ast.stmt]) -> None:
        """Interpret statements; both branches where a condition is not known."""
        for line in body:
            match line:
                case ast.Assign(targets=[target], value=value):
                    self.assign(target, self.value(value))
                case ast.AnnAssign(target=target, value=ast.expr() as value):
                    self.assign(target, self.value(value))
                case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                    left = self.values.get(name, Symbol())
                    self.values[name] = self.binary(op, left, self.value(value))
                case ast.Return(value=ast.expr() as value):
                    found = self.value(value)
                    self.returned.append(found if isinstance(found, Symbol) else Symbol("tuple"))
                case ast.If(test=test, body=then, orelse=otherwise):
                    known = self.settled(test)
                    if known is None:
                        self.value(test)
                    for branch, taken in ((then, known in (True, None)), (otherwise, not known)):
                        if taken:
                            self.run(branch)
                case ast.For(body=inner) | ast.With(body=inner) | ast.While(body=inner):
                    self.run(inner)
                case ast.Expr(value=value):
                    self.value(value)

    def assign(self, target: ast.expr, value: Any) -> None:
        """Bind a name, or several."""
        if isinstance(target, ast.Name):
            self.values[target.id] = value
        elif isinstance(target, ast.Tuple):
            known = isinstance(value, tuple) and len(value) == len(target.elts)
            for index, element in enumerate(target.elts):
                part = value[index] if known else Symbol("", () if known else symbols(value))
                self.assign(element, part)

    def settled(self, test: ast.expr) -> bool | None:
        """Decide a condition that only reads the owner's settings; None if it reads more."""
        allowed = (
            ast.Attribute, ast.Name, ast.Constant, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Load,
            ast.boolop, ast.unaryop, ast.cmpop,
        )  # fmt: skip
        for node in ast.walk(test):
            if not isinstance(node, allowed):
                return None
            if isinstance(node, ast.Name) and node.id != "self":
                return None
            if isinstance(node, ast.Attribute) and node.attr == "training":
                return None
        try:
            found = self.constant(test)
        except Exception:  # a setting that this version of the module lacks
            return None
        return None if isinstance(found, Tensor) else bool(found)

    def constant(self, expression: ast.expr) -> Any:
        """Evaluate an expression on the owner."""
        program = compile(ast.Expression(expression), "<module's code>", "eval")
        return eval(program, self.globals, {"self": self.owner})  # the library's own code

    def value(self, expression: ast.expr) -> Any:
        """Interpret an expression: a symbol, or a tuple of some."""
        match expression:
            case ast.Name(id=name):
                return self.values.get(name, Symbol())
            case ast.Call():
                return self.call(expression)
            case ast.BinOp(left=left, op=op, right=right):
                return self.binary(op, self.value(left), self.value(right))
            case ast.Tuple(elts=elements):
                return tuple(self.value(element) for element in elements)
            case ast.Constant() | ast.Lambda():
                return ()
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="self"), attr=name)):
                self.touched.add(name)
                return Symbol()
            case ast.Attribute(value=ast.Name(id="self")):
                return Symbol()
            case ast.Subscript(value=inner):
                return Symbol("indexing", symbols(self.value(inner)))
            case ast.IfExp(test=test, body=then, orelse=otherwise):
                known = self.settled(test)
                if known is not None:
                    return self.value(then if known else otherwise)
                return Symbol("", (*symbols(self.value(then)), *symbols(self.value(otherwise))))
        nodes = [node for node in ast.iter_child_nodes(expression) if isinstance(node, ast.expr)]
        return Symbol("", tuple(part for node in nodes for part in symbols(self.value(node))))

    def binary(self, op: ast.operator, left: Any, right: Any) -> Symbol:
        """Interpret an operator; only a product is understood."""
        parts = (*symbols(left), *symbols(right))
        if isinstance(op, ast.Mult) and len(parts) == 2:
            return Product("", parts)
        return Symbol(type(op).__name__.lower(), parts)

    def call(self, call: ast.Call) -> Any:
        """Interpret a call: of a child, of a tensor's method, or of a function."""
        arguments = [self.value(argument) for argument in call.args]
        arguments += [self.value(keyword.value) for keyword in call.keywords]
        parts = tuple(part for argument in arguments for part in symbols(argument))
        match call.func:
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                return self.call_child(name, parts)
            case ast.Attribute(value=inner, attr=name) if not self.is_global(inner):
                tensor = symbols(self.value(inner))
                if name in SAME and tensor:
                    return tensor[0]
                if name == "chunk" and tensor and self.halves(call.args, call.keywords):
                    return Half("", tensor, 0), Half("", tensor, 1)
                return Symbol(name, (*tensor, *parts))
        return self.call_function(call, parts)

    def call_child(self, name: str, parts: tuple[Symbol, ...]) -> Symbol:
        """Interpret `self.name(...)`."""
        child = getattr(self.owner, name, None)
        if isinstance(child, PROJECTIONS) and parts:
            self.projected.append(Projected(name, parts[:1]))
            return self.projected[-1]
        if isinstance(child, nn.Identity) and parts:
            return parts[0]
        if isinstance(child, nn.Dropout) and parts:
            self.dropped.append(Dropped(name, parts[:1], child.p, module=True))
            return self.dropped[-1]
        plain = name in vars(self.owner) and not isinstance(child, nn.Module)
        elementwise = callable(child) and (is_elementwise if plain else is_activation)(child)
        if callable(child) and len(parts) == 1 and elementwise:
            return Activated(name, parts, child)
        return Symbol(name, parts)

    def call_function(self, call: ast.Call, parts: tuple[Symbol, ...]) -> Any:
        """Interpret the call of a function that is known by a global name."""
        text = ast.unparse(call.func)
        try:
            function = self.constant(call.func)
        except Exception:  # a local name
            return Symbol(text, parts)
        if function in DROPOUTS and parts:
            given = {k.arg: k.value for k in call.keywords}
            rate = given.get("p", call.args[1] if len(call.args) > 1 else None)
            return self.drop(rate, parts[0])
        if function in (torch.mul, operator.mul) and len(parts) == 2:
            return Product("", parts)
        if function is torch.chunk and parts and self.halves(call.args[1:], call.keywords):
            return Half("", parts[:1], 0), Half("", parts[:1], 1)
        if text.rpartition(".")[2] in ELEMENTWISE and len(call.args) == 1 and parts:
            options = {k.arg: self.constant(k.value) for k in call.keywords if k.arg}
            act = functools.partial(function, **options) if options else function
            return Activated("", parts[:1], act)
        return Symbol(text, parts)

    def drop(self, rate: ast.expr | None, inner: Symbol) -> Symbol:
        """Interpret a functional dropout, whose probability is an attribute or a number."""
        name = ""
        match rate:
            case ast.Attribute(value=ast.Name(id="self"), attr=attribute):
                name = attribute
        try:
            probability = float(0.5 if rate is None else self.constant(rate))
        except Exception:  # computed from local names
            return Symbol("dropout", (inner,))
        self.dropped.append(Dropped(name, (inner,), probability))
        return self.dropped[-1]

    def halves(self, arguments: list[ast.expr], keywords: list[ast.keyword]) -> bool:
        """Tell whether the arguments of `chunk` are two pieces of the last dimension."""
        given = [ast.unparse(argument) for argument in arguments]
        given += [ast.unparse(keyword.value) for keyword in keywords]
        return given == ["2", "-1"]

    def is_global(self, expression: ast.expr) -> bool:
        """Tell whether an expression starts with a global name, not a local one."""
        while isinstance(expression, ast.Attribute):
            expression = expression.value
        return (
            isinstance(expression, ast.Name)
            and expression.id not in self.values
            and expression.id != "self"
            and expression.id in self.globals
        )


def symbols(value: Any) -> tuple[Symbol, ...]:
    """Flatten what `Interpreter.value` gives, constants left out."""
    if isinstance(value, tuple):
        return tuple(part for element in value for part in symbols(element))
    return (value,) if isinstance(value, Symbol) else ()


def in_sequence(owner: nn.Sequential) -> Interpreter:
    """Run a `Sequential` on a symbol."""
    run = Interpreter(owner)
    value = run.first
    for name, _ in owner.named_children():
        value = run.call_child(name, (value,))
    run.returned = [value]
    return run
