"""Read a pickle as plain values: nothing that it names is imported, and nothing is called.

A pickle is a program for a small stack machine that may call any function. Here its instructions are decoded by
`pickletools`, and where the program would call something, a record of the call takes the place of the result.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from deeppatch.errors import UserError

# instructions whose decoded argument is the value itself
_CONSTANTS = {
    "INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "FLOAT", "BINFLOAT",
}  # fmt: skip
_NOTHING = {"PROTO", "FRAME", "READONLY_BUFFER"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class BadPickle(ValueError):
    """The instructions of a pickle are cut off or make no sense."""


@dataclass(eq=False)
class Global:
    """Something that a pickle names, such as a class; it is not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Call:
    """An object that a pickle would have made by calling `maker`, with what would have been put into it."""

    maker: Any
    arguments: Any
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


Builders = Mapping[str, Callable[..., Any]]


def no_reference(reference: Any) -> Any:
    """Return None for a reference to something outside of the pickle."""


def read_pickle(
    file: IO[bytes], builders: Builders, reference: Callable[[Any], Any] = no_reference
) -> tuple[Any, set[str]]:
    """Read the pickle at the position of a file, which is then behind it.

    Args:
        file: A binary file.
        builders: Own functions by the name of what they stand for, such as `collections.OrderedDict`; each takes the
            arguments of the call and returns a plain value. Whatever else is called becomes a `Call`.
        reference: Returns the value of a reference to something outside of the pickle, such as the numbers of a tensor.

    Returns:
        The value, and the names of everything that the pickle would have called.

    Raises:
        BadPickle: When it is cut off or its instructions make no sense.
        UserError: What a builder raises.
    """
    machine = _Machine(builders, reference)
    try:
        for instruction, argument, _place in pickletools.genops(file):
            machine.step(instruction.name, argument)
        return machine.stack.pop(), machine.called
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise BadPickle(str(error)) from error


class _Machine:
    """The stack, the marks and the memo of one pickle."""

    def __init__(self, builders: Builders, reference: Callable[[Any], Any]) -> None:
        self.builders = builders
        self.reference = reference
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.called: set[str] = set()

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        if name in _CONSTANTS:
            self.stack.append(argument)
        elif name in _TUPLES:
            self._tuple(_TUPLES[name])
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name == "STOP":
            if self.marks:
                raise BadPickle("ends within a mark")
        elif name not in _NOTHING:
            raise BadPickle(f"instruction {name}")

    def _tuple(self, length: int) -> None:
        if len(self.stack) < length:
            raise BadPickle("the stack is empty")
        taken = tuple(self.stack[len(self.stack) - length :])
        del self.stack[len(self.stack) - length :]
        self.stack.append(taken)

    def push(self, value: Any) -> None:
        """Put a value onto the stack."""
        self.stack.append(value)

    def mark(self, _argument: Any) -> None:
        """Begin a group of values."""
        self.marks.append(self.stack)
        self.stack = []

    def group(self) -> list[Any]:
        """End a group of values, and return it."""
        taken, self.stack = self.stack, self.marks.pop()
        return taken

    def call(self, maker: Any, arguments: Any) -> None:
        """Put onto the stack what a builder makes, or a record of the call."""
        self.called.add(name := str(maker) if isinstance(maker, Global) else "")
        arguments = arguments if isinstance(arguments, tuple) else (arguments,)
        builder = self.builders.get(name)
        self.stack.append(builder(*arguments) if builder else Call(maker, arguments))

    def call_top(self, _argument: Any) -> None:
        """REDUCE and NEWOBJ: a call with a tuple of arguments."""
        arguments, maker = self.stack.pop(), self.stack.pop()
        self.call(maker, arguments)

    def call_named(self, _argument: Any) -> None:
        """NEWOBJ_EX: a call with named arguments, which no builder takes."""
        names, arguments, maker = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.called.add(str(maker) if isinstance(maker, Global) else "")
        self.stack.append(Call(maker, (arguments, names)))

    def call_group(self, argument: Any) -> None:
        """OBJ and INST of the oldest protocols: a call with a group of arguments."""
        arguments = self.group()
        maker = Global(*argument.split(" ", 1)) if argument else arguments.pop(0)
        self.call(maker, tuple(arguments))

    def set_items(self, values: list[Any]) -> None:
        """Put pairs of keys and values into a dict, or into the record of a call."""
        target = self.stack[-1]
        items = target.items if isinstance(target, Call) else target
        if not isinstance(items, dict):
            raise BadPickle("items for what is no dict")
        items.update(zip(values[::2], values[1::2], strict=True))

    def extend(self, values: list[Any]) -> None:
        """Append values to a list, or to the record of a call."""
        target = self.stack[-1]
        elements = target.elements if isinstance(target, Call) else target
        if not isinstance(elements, list):
            raise BadPickle("elements for what is no list")
        elements.extend(values)

    def build(self, _argument: Any) -> None:
        """Keep the state that an object would have been given; plain values have none."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Call):
            self.stack[-1].state = state

    def put(self, place: Any) -> None:
        """Remember the top of the stack."""
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def name(self, argument: Any) -> None:
        """Put the name of something onto the stack; the older names of Python's own modules are today's."""
        if argument is None:  # STACK_GLOBAL
            name, module = self.stack.pop(), self.stack.pop()
        else:
            module, name = argument.split(" ", 1)
        self.stack.append(Global({"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module), str(name)))

    def pop(self, _argument: Any) -> None:
        """Drop the top of the stack, or an empty group."""
        if self.stack:
            self.stack.pop()
        else:
            self.group()


def _dict_of(values: list[Any]) -> dict[Any, Any]:
    return dict(zip(values[::2], values[1::2], strict=True))


def _two(machine: _Machine) -> list[Any]:
    value, key = machine.stack.pop(), machine.stack.pop()
    return [key, value]


_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: machine.push(machine.group()),
    "DICT": lambda machine, _: machine.push(_dict_of(machine.group())),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.group())),
    "FROZENSET": lambda machine, _: machine.push(tuple(machine.group())),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.group()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.group()),
    "SETITEM": lambda machine, _: machine.set_items(_two(machine)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.group()),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, _: machine.group(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "GET": lambda machine, place: machine.push(machine.memo[place]),
    "BINGET": lambda machine, place: machine.push(machine.memo[place]),
    "LONG_BINGET": lambda machine, place: machine.push(machine.memo[place]),
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name,
    "REDUCE": _Machine.call_top,
    "NEWOBJ": _Machine.call_top,
    "NEWOBJ_EX": _Machine.call_named,
    "OBJ": _Machine.call_group,
    "INST": _Machine.call_group,
    "BUILD": _Machine.build,
    "PERSID": lambda machine, argument: machine.push(machine.reference(argument)),
    "BINPERSID": lambda machine, _: machine.push(machine.reference(machine.stack.pop())),
}
