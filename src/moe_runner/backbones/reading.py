"""Read from a module's code what it computes between its projections.

The modules of a block say that there is a feed-forward network, but not in which order they are
called, which half of a fused projection is the gate, or where a functional dropout sits. The code
does: `forward` (or a helper of it) is interpreted on symbols, one statement after the other, and
conditions that only concern the module's own settings are decided.
"""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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


@dataclass(frozen=True)
class Reading:
    """A feed-forward network in a module's code.

    Args:
        key: name of the first projection (gated: the gate).
        value: name of the second.
        activation: between them.
        up: name of the up projection.
        fused: the first projection holds the gate's rows, then the up projection's.
        act: module or attribute of the activation; "" for a function named in the code.
        drop: the dropout of the neurons.
        dropped_again: the output passes the same dropout module.
        whole: the code is `forward`, takes the network's input alone and returns its output.
        touched: the code reads attributes of a projection, such as its weight.
    """

    key: str
    value: str
    activation: Callable[[Tensor], Tensor]
    up: str | None = None
    fused: bool = False
    act: str = ""
    drop: Dropped | None = None
    dropped_again: bool = False
    whole: bool = False
    touched: bool = False


@dataclass(frozen=True)
class Refusal:
    """What looks like a feed-forward network and cannot be converted.

    Args:
        reason: what its code does besides.
    """

    reason: str


def read_code(owner: nn.Module) -> list[Reading | Refusal]:
    """Find the feed-forward networks whose projections are children of a module.

    Args:
        owner: any module; of a `Sequential` the children are called one after the other.

    Returns:
        What is found, in the order of the code; nothing if no function calls two projections with
        an elementwise function somewhere between.
    """
    if isinstance(owner, nn.Sequential):
        return readings(owner, in_sequence(owner), whole_forward=True)
    found: list[Reading | Refusal] = []
    for name in methods_of(type(owner)):
        run = Interpreter(owner)
        run.function(name)
        found += readings(owner, run, whole_forward=name == "forward")
    return found


def reads_through(owner: nn.Module) -> tuple[str, Activated] | None:
    """Read the first part of a split network: one projection, then the activation, returned.

    Returns:
        The projection's name and the activation; None if `forward` does anything else.
    """
    run = Interpreter(owner)
    run.function("forward")
    match run.returned:
        case [Activated(parts=(Projected() as first,)) as last] if not first.parts[0].name:
            return first.name, last
    return None


def projects_its_argument(owner: nn.Module) -> str | None:
    """Name the projection that a module's `forward` puts its first argument through."""
    run = Interpreter(owner)
    run.function("forward")
    for projected in run.projected:
        if projected.parts[0] is run.first:
            return projected.name
    return None


def readings(owner: nn.Module, run: Interpreter, *, whole_forward: bool) -> list[Reading | Refusal]:
    """Match the inputs of the projections with the forms of a feed-forward network."""
    found: list[Reading | Refusal] = []
    for last in run.projected:
        inner, drop = last.parts[0], None
        if isinstance(inner, Dropped):
            inner, drop = inner.parts[0], inner
        read: Reading | None = None
        match inner:
            case Activated(parts=(Projected() as first,)):
                read = Reading(first.name, last.name, inner.function, act=inner.name)
            case Product(parts=(a, b)):
                act, other = (a, b) if isinstance(a, Activated) else (b, a)
                read = gated(act, other, last.name)
        if read is None:
            if reason := why_not(last):
                found.append(Refusal(reason))
            continue
        outer = [d for d in run.dropped if d.parts[0] is last]
        again = drop is not None and drop.module and any(d.name == drop.name for d in outer)
        first = next(p for p in run.projected if p.name == read.key)
        whole = whole_forward and run.alone and run.returned == [last]
        found.append(
            replace(
                read,
                drop=drop,
                dropped_again=again,
                whole=whole and first.parts[0] is run.first,
                touched=bool(run.touched & {read.key, last.name}),
            )
        )
    return found


def gated(act: Symbol, other: Symbol, value: str) -> Reading | None:
    """Match a product: the gate through the activation, times the up projection."""
    match act, other:
        case Activated(parts=(Projected() as gate,)), Projected():
            if gate.parts[0] is other.parts[0]:
                return Reading(gate.name, value, act.function, up=other.name, act=act.name)
        case Activated(parts=(Half(parts=(whole,), index=0),)), Half(parts=(same,), index=1):
            if whole is same and isinstance(whole, Projected):
                return Reading(whole.name, value, act.function, fused=True, act=act.name)
    return None


def why_not(last: Projected) -> str | None:
    """Say what stands between two projections that no form has; None if it is no such network."""
    between, seen, others = list(last.parts), set(), []
    while between:
        symbol = between.pop()
        if symbol in seen:
            continue
        seen.add(symbol)
        if type(symbol) is Symbol and symbol.name and symbol.name not in others:
            others.append(symbol.name)
        if not isinstance(symbol, Projected):
            between += symbol.parts
    if not all(any(isinstance(s, kind) for s in seen) for kind in (Activated, Projected)):
        return None
    if not others:
        return "combines its projections in another way than a feed-forward network"
    return f"computes {', '.join(others)} between its projections"


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


def count_uses(owner: nn.Module) -> Counter[str]:
    """Count how often the code of a module's class names each of its attributes."""
    return uses_of(type(owner))


@functools.cache
def uses_of(kind: type[nn.Module]) -> Counter[str]:
    """Count the attributes of `self` that a class's functions name."""
    codes = [code_of(inspect.unwrap(getattr(kind, name))) for name in methods_of(kind)]
    nodes = [node for code in codes if code is not None for node in ast.walk(code)]
    if issubclass(kind, nn.Sequential):
        return Counter()
    return Counter(
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


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
        inner = [node for node in ast.iter_child_nodes(expression) if isinstance(node, ast.expr)]
        return Symbol("", tuple(part for node in inner for part in symbols(self.value(node))))

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
        plain = callable(child) and name in vars(self.owner) and is_elementwise(child)
        if len(parts) == 1 and (plain or is_activation(child)):
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
