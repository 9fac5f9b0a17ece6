"""A graph of networkx out of a pickle, read as data: no name that a pickle holds is ever looked up or called.

Pickles are programs. This reader knows the instructions for numbers, texts, lists, tuples and dicts, and what networkx
graphs and NumPy's numbers and arrays are made of; it builds plain values of them and refuses everything else.
"""

import pickletools
from typing import Any, NamedTuple

import numpy as np

from emcore.errors import InputError

GRAPHS = {f"networkx.classes.{name} {kind}" for name, kind in (
    ("graph", "Graph"), ("digraph", "DiGraph"))}
NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
SCALARS = {f"{module} scalar" for module in NUMPY}
ARRAYS = {f"{module} _reconstruct" for module in NUMPY}
# a graph that was used keeps these views of itself
VIEWS = ("networkx.classes.reportviews ", "networkx.classes.coreviews ")
BUFFERS = {f"{module} _frombuffer" for module in ("numpy.core.numeric", "numpy._core.numeric")}
KNOWN = GRAPHS | SCALARS | ARRAYS | BUFFERS | {"numpy ndarray", "numpy dtype", "_codecs encode", "__builtin__ dict",
                                     "builtins dict"}
LONGEST = 100  # Names, coded bytes and arrays are no longer: a place has three numbers.
TYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
ENDIAN = ("<", ">", "|", "=")


class Name(str):
    """What a pickle calls by a module and a name. It stays a text."""


class Mark:
    """Where the items of a container begin on the stack."""


class Made(NamedTuple):
    """What the pickle would make by a call or as a new object, and the state that it would be given."""

    name: str
    arguments: tuple
    state: list


class Refused(Exception):
    """Why a pickle is not read."""


def read_graph(data: bytes, name: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Places and edges of every skeleton of a graph, by its id: nodes have id and nm_position.

    A place stays in the order of the file, which is that of the axes of the arrays that it belongs to.
    """
    try:
        return _skeletons(_state(Machine().run(data)), len(data))
    except Refused as error:
        raise InputError(f"{name} is not read: {error}; a pickled graph of networkx is read whose nodes have the "
                         "attributes id and nm_position, made of plain numbers, lists, tuples and NumPy's") from None


class Machine:
    """The stack and the memory of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        try:
            for code, argument, _ in pickletools.genops(data):
                if code.name == "STOP":
                    if len(self.stack) != 1:
                        raise Refused("it ends with things left over")
                    return self.stack[0]
                self.step(code.name, argument)
        except (ValueError, IndexError, KeyError, OverflowError, UnicodeError, AttributeError, TypeError) as error:
            raise Refused(f"it is damaged ({type(error).__name__})") from None
        raise Refused("it has no end")

    def step(self, code: str, argument: Any) -> None:
        stack = self.stack
        if code in ("PROTO", "FRAME"):
            return
        if code in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[code])
        elif code in ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"):
            if not -(2**64) < argument < 2**64:
                raise Refused("it holds a number of more than 64 bits")
            stack.append(argument)
        elif code in ("FLOAT", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINBYTES",
                      "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING", "STRING"):
            stack.append(argument)
        elif code == "BYTEARRAY8":
            stack.append(bytes(argument))
        elif code in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
            stack.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}[code]())
        elif code == "MARK":
            stack.append(Mark())
        elif code in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(code[-1])
            stack[-count:] = [tuple(self.top(count))]
        elif code in ("TUPLE", "LIST", "DICT"):
            items = self.marked()
            stack.append(tuple(items) if code == "TUPLE" else items if code == "LIST" else pairs(items))
        elif code in ("APPEND", "APPENDS"):
            items = [stack.pop()] if code == "APPEND" else self.marked()
            self.container(list).extend(items)
        elif code in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if code == "SETITEM" else self.marked()
            self.container(dict).update(pairs(items))
        elif code == "MEMOIZE":
            self.memory[len(self.memory)] = stack[-1]
        elif code in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memory[argument] = stack[-1]
        elif code in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memory[argument])
        elif code in ("GLOBAL", "STACK_GLOBAL"):
            self.name(argument.split(" ") if code == "GLOBAL" else [stack.pop(), stack.pop()][::-1])
        elif code in ("REDUCE", "NEWOBJ"):
            arguments, made = stack.pop(), stack.pop()
            if type(made) is not Name or type(arguments) is not tuple:
                raise Refused("it calls what is no name")
            stack.append(call(made, arguments))
        elif code == "BUILD":
            state, made = stack.pop(), stack[-1]
            if type(made) is not Made:
                raise Refused("it gives a state to a plain value")
            made.state[:] = [state]
        elif code == "POP":
            stack.pop()
        else:
            raise Refused(f"it holds the instruction {code}")

    def name(self, parts: list[Any]) -> None:
        text = " ".join(part[:LONGEST] if type(part) is str else "?" for part in parts)
        if text not in KNOWN and not text.startswith(VIEWS):
            raise Refused(f"it asks for {text[:80]!r}")
        self.stack.append(Name(text))

    def top(self, count: int) -> list[Any]:
        items = self.stack[-count:]
        if len(items) < count or any(type(item) is Mark for item in items):
            raise Refused("it is damaged (too few values)")
        return items

    def marked(self) -> list[Any]:
        """The items behind the last mark, taken off the stack."""
        for place in range(len(self.stack) - 1, -1, -1):
            if type(self.stack[place]) is Mark:
                items = self.stack[place + 1:]
                del self.stack[place:]
                return items
        raise Refused("it is damaged (no mark)")

    def container(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise Refused("it fills what is no container")
        return self.stack[-1]


def pairs(items: list[Any]) -> dict:
    """A dict of keys and values that follow each other; keys are texts and whole numbers, or NumPy's."""
    keys = [value_of(key) if type(key) is Made else key for key in items[::2]]
    if len(items) % 2 or any(type(key) not in (str, int, float, bool) for key in keys):
        raise Refused("it has a dict whose keys are neither texts nor numbers")
    return dict(zip(keys, items[1::2]))


def call(name: Name, arguments: tuple) -> Any:
    """What a known name stands for, without calling it."""
    if name == "_codecs encode":  # how old protocols write bytes
        text, encoding = arguments
        if type(text) is not str or len(text) > LONGEST or encoding != "latin1":
            raise Refused("it encodes what is no text")
        return text.encode("latin1")
    if name in ("__builtin__ dict", "builtins dict"):
        if arguments:
            raise Refused("it makes a dict of something")
        return {}
    if name == "numpy ndarray":
        raise Refused("it makes an array in an unknown way")
    return Made(str(name), arguments, [])


def dtype_of(made: Any) -> np.dtype:
    """The type of plain numbers that a pickle describes."""
    if type(made) is not Made or made.name != "numpy dtype" or not made.arguments:
        raise Refused("it holds an array without a type")
    code = made.arguments[0]
    if type(code) is not str or code not in TYPES:
        raise Refused(f"it holds an array of the type {code[:20] if type(code) is str else '?'!r}")
    order = made.state[0][1] if made.state and type(made.state[0]) is tuple and len(made.state[0]) > 1 else "|"
    if order not in ENDIAN:
        raise Refused("it holds an array of an unknown byte order")
    return np.dtype(code).newbyteorder(order)


def value_of(item: Any) -> Any:
    """A plain value: what stands there, or NumPy's number or array of what it is made of."""
    if type(item) is not Made:
        return item
    if item.name in SCALARS and len(item.arguments) == 2:
        dtype, data = dtype_of(item.arguments[0]), item.arguments[1]
        if type(data) is not bytes or len(data) != dtype.itemsize:
            raise Refused("it holds a number of the wrong size")
        return np.frombuffer(data, dtype)[0].item()
    if item.name in BUFFERS and len(item.arguments) == 4:
        data, dtype, shape, _ = item.arguments
        return array_of(shape, dtype, data)
    if item.name in ARRAYS and item.state and type(item.state[0]) is tuple and len(item.state[0]) == 5:
        _, shape, dtype, _, data = item.state[0]
        return array_of(shape, dtype, data)
    raise Refused(f"it holds {item.name}")


def array_of(shape: Any, dtype: Any, data: Any) -> list:
    """The numbers of an array of one axis."""
    dtype = dtype_of(dtype)
    flat = type(shape) is tuple and len(shape) == 1 and type(shape[0]) is int and shape[0] <= LONGEST
    if not flat or type(data) is not bytes or len(data) != shape[0] * dtype.itemsize:
        raise Refused("it holds an array of the wrong size")
    return np.frombuffer(data, dtype).tolist()


def _state(made: Any) -> dict:
    if type(made) is not Made or made.name not in GRAPHS or not made.state or type(made.state[0]) is not dict:
        raise Refused("it holds no graph of networkx")
    return made.state[0]


def _skeletons(state: dict, most: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    nodes, links = state.get("_node"), state.get("_adj")
    if type(nodes) is not dict or type(links) is not dict:
        raise Refused("its graph has no nodes and edges")
    if sum(len(others) for others in links.values() if type(others) is dict) > most:
        raise Refused("it names one list of edges again and again")
    owner, number = {}, {}
    places: dict[int, list] = {}
    for node, attributes in nodes.items():
        if type(attributes) is not dict or not {"id", "nm_position"} <= attributes.keys():
            raise Refused("a node lacks id or nm_position")
        label, place = value_of(attributes["id"]), value_of(attributes["nm_position"])
        place = [value_of(at) for at in place] if type(place) in (list, tuple) and len(place) == 3 else ()
        if type(label) is not int or not 0 <= label < 2**64:
            raise Refused("the id of a node is no whole number from 0 on")
        if len(place) != 3 or any(type(at) not in (int, float) or not abs(at) < 1e15 for at in place):
            raise Refused("the nm_position of a node is not three numbers")
        owner[node], number[node] = label, len(places.setdefault(label, []))
        places[label].append(place)
    edges: dict[int, dict] = {label: {} for label in places}
    for node, others in links.items():
        if type(others) is not dict or node not in owner or any(other not in owner for other in others):
            raise Refused("its edges name nodes that are not there")
        for other in others:
            if owner[other] != owner[node]:
                raise Refused(f"an edge joins the skeletons {owner[node]} and {owner[other]}")
            edges[owner[node]][min(number[node], number[other]), max(number[node], number[other])] = None
    return {label: (np.array(own, np.float64).reshape(-1, 3), np.array(list(edges[label]), np.int64).reshape(-1, 2))
            for label, own in places.items()}
