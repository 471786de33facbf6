"""TorchScript's text, as torch's serializer prints it: what it uses, and where. What is never printed is refused.

The text is read by Python's parser, and torch has another one. So all that the two could take differently (comments,
other quotes, other blanks, letters beyond ASCII) is refused before.

Source:
    torch/csrc/jit/serialization/python_print.cpp and import_source.cpp of PyTorch.
"""

import ast
import re
import warnings
from collections.abc import Mapping

from kit.errors import WeightsError

TYPE_ARGUMENT = {"annotate": 0, "unchecked_cast": 0, "uninitialized": 0, "isinstance": 1}  # which one is a type
BUILTINS = frozenset({"int", "float", "bool", "str", "range", *TYPE_ARGUMENT})
TYPES = frozenset({
    "Tensor", "int", "float", "bool", "str", "number", "Device", "NoneType", "List", "Dict", "Tuple", "Optional",
    "Final",
})  # fmt: skip
SHOWN = 60  # letters of an expression
ROOTS = frozenset({"torch", "ops", "CONSTANTS", "__torch__"})
NUMBERS = frozenset({"inf", "nan"})
CONSTANT = re.compile(r"CONSTANTS\.c[0-9]+")
STRING = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"')
STRANGE = re.compile(r'[^\w.,:()\[\]{}=>+\-" \n]|[\w"]""', re.ASCII)  # outside of strings; or a string with a prefix
PLAIN = (
    ast.Assign, ast.Expr, ast.If, ast.While, ast.For, ast.Pass, ast.Return, ast.List, ast.Tuple, ast.Dict,
    ast.Subscript, ast.Slice, ast.UnaryOp, ast.USub, ast.Load, ast.Store,
)  # fmt: skip


def names_in(sources: Mapping[str, bytes]) -> tuple[dict[str, str], set[str]]:
    """Returns what code records use, as they write it, with the place of its first use; and the classes they define.

    Operators are `torch.conv2d` and `ops.prim.dtype`. What cannot be one is among them too: `print`, `self.weight`, a
    class that no record defines.

    Args:
        sources: the records by name, `code/__torch__/a/b.py`.

    Raises:
        WeightsError: torch would not print such text.
    """
    trees = {record: _parsed(record, source) for record, source in sources.items()}
    classes = {
        f"{record.removeprefix('code/').removesuffix('.py').replace('/', '.')}.{node.name}"
        for record, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    used: dict[str, str] = {}
    for record, tree in trees.items():
        reader = _Reader(record, classes, used)
        try:
            for node in tree.body:
                reader.visit(node)
        except RecursionError as cause:
            raise WeightsError(f"{record} is nested too deeply") from cause
    return used, classes


def _parsed(record: str, source: bytes) -> ast.Module:
    """Returns the syntax tree of text that two parsers must read alike."""
    try:
        text = source.decode("ascii")
        bare = STRING.sub('""', text)
        if strange := STRANGE.search(bare):
            raise _never(record, bare.count("\n", 0, strange.start()) + 1, repr(strange.group()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in strings
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as cause:
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise WeightsError(f"{record} is not TorchScript: {reason}") from cause


def _never(record: str, line: int, what: str) -> WeightsError:
    return WeightsError(f"{record}:{line} has {what}, which torch never writes there")


class _Reader(ast.NodeVisitor):
    """Notes what a code record uses.

    Args:
        record: its name.
        classes: full names of the classes in all records.
        used: filled with what is used, and where first.
    """

    def __init__(self, record: str, classes: set[str], used: dict[str, str]) -> None:
        self.record, self.classes, self.used = record, classes, used
        self.values: set[str] = set()  # what is stored so far, in the function that is being read
        self.inside = False  # of a function

    def use(self, name: str, node: ast.expr | ast.stmt) -> None:
        """Notes a use."""
        self.used.setdefault(name, f"{self.record}:{node.lineno}")

    def generic_visit(self, node: ast.AST) -> None:
        """Goes into what is plain, and refuses the rest."""
        if not isinstance(node, PLAIN):
            raise _never(self.record, getattr(node, "lineno", 0), type(node).__name__)
        super().generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Reads the class of a module: names, types of attributes, methods."""
        if [ast.unparse(base) for base in node.bases] != ["Module"] or node.keywords or node.decorator_list:
            self.use(f"class {node.name}", node)
        for statement in node.body:
            self.visit(statement)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Reads a function with arguments of known types."""
        given = node.args
        if self.inside or node.decorator_list or given.posonlyargs or given.kwonlyargs:
            raise _never(self.record, node.lineno, f"such a function as {node.name}")
        if given.vararg or given.kwarg:
            raise _never(self.record, node.lineno, f"such arguments as those of {node.name}")
        self.values, self.inside = set(), True
        for argument in given.args:
            self.store(argument.arg, node)
        for type_ in (*(argument.annotation for argument in given.args), node.returns):
            self.read_type(type_)
        for part in (*given.defaults, *node.body):
            self.visit(part)
        self.inside = False

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Reads a value that tells its type."""
        self.read_type(node.annotation)
        self.visit(node.target)
        if node.value:
            self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        """Reads the call of an operator or a built-in function; nothing else is called in what torch prints."""
        called = node.func.id if isinstance(node.func, ast.Name) else ""
        if called:
            self.use(called, node)
        else:
            self.visit_Attribute(node.func)
        for place, argument in enumerate(node.args):
            if TYPE_ARGUMENT.get(called) == place:
                self.read_type(argument)
            else:
                self.visit(argument)
        for keyword in node.keywords:
            if keyword.arg is None:
                raise _never(self.record, node.lineno, "**")
            self.visit(keyword.value)

    def visit_Attribute(self, node: ast.expr) -> None:
        """Reads `torch.add`, `ops.prim.dtype`, `CONSTANTS.c0`; an attribute of anything else is no part of these."""
        name = _dotted(node)
        if isinstance(getattr(node, "ctx", None), ast.Store):
            name = f"{name} = ..."
        if not CONSTANT.fullmatch(name):
            self.use(name, node)

    def visit_Name(self, node: ast.Name) -> None:
        """Reads a value of the function; any other name, such as `torch` alone, is a use of it."""
        if isinstance(node.ctx, ast.Store):
            self.store(node.id, node)
        elif node.id not in self.values and node.id not in NUMBERS:
            self.use(node.id, node)

    def store(self, name: str, node: ast.expr | ast.stmt) -> None:
        """Notes that a name is a value from here on; the names of operators are none."""
        self.values.add(name)
        if name in ROOTS or name in BUILTINS:
            self.use(f"{name} = ...", node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Passes over a number, a string or None."""
        if not isinstance(node.value, str | int | float | None):
            raise _never(self.record, node.lineno, repr(node.value))

    def read_type(self, node: ast.expr | None) -> None:
        """Reads a type: of tensors, numbers and their lists, or a class that a record defines."""
        match node:
            case None | ast.Constant(value=None):
                pass
            case ast.Name(id=name) if name in TYPES:
                pass
            case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in TYPES:
                self.read_type(inner)
            case ast.Tuple(elts=inner):
                for type_ in inner:
                    self.read_type(type_)
            case _ if _dotted(node) not in self.classes:
                self.use(_dotted(node), node)


def _dotted(node: ast.expr) -> str:
    """Returns `a.b.c`, or the beginning of whatever else stands there."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ast.unparse(node)[:SHOWN]
