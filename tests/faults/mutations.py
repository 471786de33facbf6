"""Damage as disks, editors and strangers do it, drawn from a seed."""

import json
import random
from collections.abc import Iterator

VALUES = ("", "NaN", "-1", "1e309", "0", "null", "true", '"', "\x1b[31m", "\0", "\ud7ff", "9" * 40, "a,b", "../x")


def mutations(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields `count` damaged versions of a text file, each with the kind of damage."""
    dice = random.Random(seed)
    kinds = (flipped, cut_off, without_a_line, line_twice, other_value, other_json, nested, swapped_lines)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        damaged = kind(content, dice)
        if damaged != content:
            yield f"{kind.__name__} {number}", damaged


def flipped(content: bytes, dice: random.Random) -> bytes:
    """Four bytes replaced."""
    damaged = bytearray(content)
    for _ in range(4):
        damaged[dice.randrange(len(damaged))] = dice.randrange(256)
    return bytes(damaged)


def cut_off(content: bytes, dice: random.Random) -> bytes:
    return content[: dice.randrange(len(content))]


def without_a_line(content: bytes, dice: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    lines.pop(dice.randrange(len(lines)))
    return b"".join(lines)


def line_twice(content: bytes, dice: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    place = dice.randrange(len(lines))
    return b"".join([*lines[:place], lines[place], *lines[place:]])


def swapped_lines(content: bytes, dice: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    first, second = dice.randrange(len(lines)), dice.randrange(len(lines))
    lines[first], lines[second] = lines[second], lines[first]
    return b"".join(lines)


def other_value(content: bytes, dice: random.Random) -> bytes:
    """One value of a table, or one piece between separators, replaced by an odd one."""
    text = content.decode()
    places = [place for place, character in enumerate(text) if character in ",: "]
    if not places:
        return content
    start = dice.choice(places) + 1
    end = next((place for place in range(start, len(text)) if text[place] in ",\n}"), len(text))
    return (text[:start] + dice.choice(VALUES) + text[end:]).encode("utf-8", "surrogatepass")


def other_json(content: bytes, dice: random.Random) -> bytes:
    """One value of a JSON object replaced by one of another type; of a table, all of it by JSON."""
    odd = dice.choice([None, [], {}, -1, 1e308, "x", True, [[]], {"a": None}])
    try:
        parsed = json.loads(content)
    except ValueError:
        return json.dumps(odd).encode()
    if not isinstance(parsed, dict) or not parsed:
        return json.dumps(odd).encode()
    parsed[dice.choice(sorted(parsed))] = odd
    return json.dumps(parsed).encode()


def nested(content: bytes, dice: random.Random) -> bytes:
    """Deeper than any parser likes."""
    depth = dice.choice([2_000, 100_000])
    return b"[" * depth + content[:0] + b"]" * depth
