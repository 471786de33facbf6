"""The names that TorchScript code uses, read from its text without running it.

The text is cut into tokens, not parsed: whatever is no token that torch's serializer prints (comments, other quotes,
operators such as `@`, letters beyond ASCII) is refused, so no trick of grammar can hide a name. An operator is always
printed as `torch.NAME(` or `ops.NAMESPACE.NAME(`, and nothing else can be called but a few built-in functions.

Source:
    torch/csrc/jit/serialization/python_print.cpp and import_source.cpp, torch/csrc/jit/frontend/lexer.h of PyTorch.
"""

import keyword
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kit.errors import WeightsError

BUILTINS = frozenset({
    "int", "float", "bool", "str", "range", "annotate", "unchecked_cast", "uninitialized", "isinstance",
})  # fmt: skip
TYPES = frozenset({
    "Tensor", "int", "float", "bool", "str", "number", "Device", "NoneType", "List", "Dict", "Tuple", "Optional",
    "Final",
})  # fmt: skip
VALUES = frozenset({"True", "False", "None", "inf", "nan", "in"})  # and the one keyword that stands within a line
KEYWORDS = frozenset({"def", "class", "return", "if", "elif", "else", "while", "for", "pass"})  # each begins a line
CONSTANT = re.compile(r"CONSTANTS\.c[0-9]+")
CLASS = re.compile(r"^class (\w+)\(", re.MULTILINE | re.ASCII)
TOKEN = re.compile(
    r'(?P<string>"(?:[^"\\\n]|\\[^\n])*")'
    r"|(?P<number>-?(?:\d+(?:\.\d*)?(?:e[+-]?\d+)?|inf\b))"
    r"|(?P<name>[A-Za-z_]\w*(?:\.\w+)*)"
    r"|(?P<mark>->|:(?!=)|=(?!=)|[()\[\]{},])"
    r"|(?P<blank> +|\n *)",
    re.ASCII,
)
DEEPEST = 200  # brackets within brackets; torch's parser would exhaust the stack
METHOD_INDENT = 2


@dataclass(frozen=True)
class Token:
    """A piece of code."""

    kind: str  # `string`, `number`, `name` or `mark`
    text: str  # as it stands in the code
    line: int  # where, from 1
    first: bool  # whether it begins its line
    depth: int  # brackets around it


def names_in(sources: Mapping[str, bytes]) -> tuple[dict[str, str], set[str]]:
    """Returns the names that code records use, each with the place of its first use; and the classes they define.

    Operators are `torch.conv2d` and `ops.prim.dtype`. Names that are no operator are among them too: `print`,
    `self.weight`, a class that no record defines.

    Args:
        sources: the records by name, `code/__torch__/a/b.py`.

    Raises:
        WeightsError: torch would not print such text.
    """
    texts = {}
    for record, source in sources.items():
        try:
            texts[record] = source.decode("ascii")
        except UnicodeDecodeError as cause:
            raise WeightsError(f"{record} is not TorchScript: {cause}") from cause
    classes = {
        f"{record.removeprefix('code/').removesuffix('.py').replace('/', '.')}.{name}"
        for record, text in texts.items()
        for name in CLASS.findall(text)
    }
    used: dict[str, str] = {}
    for record, text in texts.items():
        for name, line in _uses(list(_tokens(record, text)), classes):
            used.setdefault(name, f"{record}:{line}")
    return used, classes


def _tokens(record: str, text: str) -> Iterator[Token]:
    """Yields the tokens of a code record, without blanks."""
    place, line, depth, first, indent, before = 0, 1, 0, True, 0, ""
    while place < len(text):
        match = TOKEN.match(text, place)
        if not match:
            raise _unprinted(record, line, text[place])
        kind, piece, place = str(match.lastgroup), match.group(), match.end()
        if kind == "blank":
            if piece[0] == "\n":
                line, first, indent = line + 1, True, len(piece) - 1
            before = ""
            continue
        if before in ("name", "number", "string") and kind != "mark":  # r"", 1j, "a""b": torch leaves a blank
            raise _unprinted(record, line, piece)
        statement = piece in KEYWORDS and first and not (piece == "def" and indent > METHOD_INDENT)
        if keyword.iskeyword(piece) and piece not in VALUES and not statement:
            raise _unprinted(record, line, piece)
        depth -= piece in ")]}"
        yield Token(kind, piece, line, first, depth)
        depth += kind == "mark" and piece in "([{"
        if not 0 <= depth <= DEEPEST:
            raise WeightsError(f"{record}:{line} is nested too deeply, or a bracket is missing")
        first, before = False, "" if kind == "mark" else kind
    if depth:
        raise WeightsError(f"{record}:{line} is not TorchScript: a bracket is missing")


def _uses(tokens: list[Token], classes: set[str]) -> Iterator[tuple[str, int]]:
    """Yields each use of an operator, and of whatever is neither a value nor a type, with its line."""
    values: set[str] = set()
    start = ""  # the token that began the line
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        name, following = token.text, after.text if after else ""
        start = name if token.first and not token.depth else start
        if name == "(" and before and (before.text in ")]}" or before.kind in ("string", "number")):
            yield f"{before.text}(", token.line  # a call of what an expression gives
        if token.kind != "name" or (token.first and name in KEYWORDS):
            continue
        if "." in name:
            if not (CONSTANT.fullmatch(name) or name in classes):
                yield name if following == "(" else f"{name} alone", token.line
        elif name in ("torch", "ops", "CONSTANTS", "__torch__"):
            yield name, token.line
        elif start == "class":
            if before and before.text == "(" and name != "Module":
                yield f"class of {name}", token.line
        elif following == "(" and not (before and before.text == "def"):
            yield name, token.line
        elif name in TYPES | VALUES and not (token.first and following == "="):
            continue
        elif start == "def" or following == "=" or _is_stored(token, before, following):
            values.add(name)
            if name in TYPES | BUILTINS and not token.depth:
                yield f"{name} = ...", token.line
        elif name not in values:
            yield name, token.line


def _is_stored(token: Token, before: Token | None, following: str) -> bool:
    """Returns whether a name stands where a value gets it: `x : int`, `a, b = ...`, `for i in ...`."""
    target = token.first or (before is not None and before.text in (",", "for"))
    return target and not token.depth and following in (":", ",", "in")


def _unprinted(record: str, line: int, piece: str) -> WeightsError:
    return WeightsError(f"{record}:{line} has {piece!r}, which torch never writes there")
