"""Schemas that are remembered are those that Letta would have made."""

from __future__ import annotations

import random
import sys
from types import ModuleType
from typing import Any

import pytest

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("letta")]

TYPES = (
    "str", "int", "float", "bool", "list[str]", "dict", "Optional[str]", "List[int]",
    "Literal['any', 'all']",
)  # fmt: skip


def remembering(made: list[tuple[str, str]] | None = None) -> tuple[Any, Any]:
    """Letta's function, and ours around it. `made` gets what ours lets Letta make."""
    from letta.functions.functions import get_json_schema_from_module

    from letta_redis.plugin.runtime import Runtime
    from letta_redis.plugin.schemas import FEATURE
    from settings import Settings

    def noted(module_name: str, function_name: str) -> Any:
        if made is not None:
            made.append((module_name, function_name))
        return get_json_schema_from_module(module_name, function_name)

    (seam,) = FEATURE.seams
    assert seam.replace is not None
    return get_json_schema_from_module, seam.replace(Runtime(Settings()), noted)


def written(number: int) -> str:
    """The source of a function with random parameters."""
    chosen = random.Random(number)
    names = [f"p{i}" for i in range(chosen.randint(0, 5))]
    kinds = [chosen.choice(TYPES) for _ in names]
    required = chosen.randint(0, len(names))
    parameters = [
        f"{name}: {kind}" + ("" if place < required else " = None")
        for place, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    remarks = ("great", "a 'quote'", "\u00e9", "{x}")
    rows = [
        f"        {name} ({kind}): It is {chosen.choice(remarks)}."
        for name, kind in zip(names, kinds, strict=True)
    ]
    return "\n".join([
        f"def f{number}({', '.join(parameters)}) -> str:",
        '    """', f"    Does {number}.", "", "    Args:", *rows, "",
        "    Returns:", "        str: something", '    """', "    return ''",
    ])  # fmt: skip


def execute(source: str, module: ModuleType) -> None:
    exec(compile(source, module.__name__, "exec", dont_inherit=True), module.__dict__)


@pytest.fixture
def module() -> Any:
    """A module of random functions."""
    made = ModuleType("letta_redis_random_tools")
    source = "from typing import List, Literal, Optional\n" + "\n".join(map(written, range(200)))
    execute(source, made)
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


def test_every_tool_of_letta_has_the_same_schema() -> None:
    from letta.constants import LETTA_TOOL_MODULE_NAMES
    from letta.functions.functions import load_function_set

    calls: list[tuple[str, str]] = []
    theirs, ours = remembering(calls)
    tools = [
        (name, function)
        for name in LETTA_TOOL_MODULE_NAMES
        for function in load_function_set(sys.modules.get(name) or __import__(name, fromlist=["*"]))
    ]
    assert len(tools) > 20
    for name, function in tools:
        expected = theirs(module_name=name, function_name=function)
        made = ours(module_name=name, function_name=function)
        remembered = ours(module_name=name, function_name=function)
        assert repr(made) == repr(remembered) == repr(expected)
    assert calls == tools  # each one once


def test_random_functions_have_the_same_schemas(module: ModuleType) -> None:
    calls: list[tuple[str, str]] = []
    theirs, ours = remembering(calls)

    for number in range(200):
        name = f"f{number}"
        expected = repr(theirs(module.__name__, name))
        assert [repr(ours(module.__name__, name)) for _ in range(2)] == [expected, expected]
    assert len(calls) == 200


def test_a_schema_that_is_changed_stays_as_it_was(module: ModuleType) -> None:
    _, ours = remembering()
    expected = repr(ours(module.__name__, "f1"))

    ours(module.__name__, "f1")["name"] = "changed"
    ours(module.__name__, "f1")["parameters"].clear()

    assert repr(ours(module.__name__, "f1")) == expected


def test_a_function_that_was_replaced_has_its_new_schema(module: ModuleType) -> None:
    theirs, ours = remembering()
    ours(module.__name__, "f1")

    execute(written(2).replace("def f2", "def f1"), module)
    assert repr(ours(module.__name__, "f1")) == repr(theirs(module.__name__, "f1"))

    module.f1.__doc__ = str(module.f1.__doc__).replace("Does 2", "Does 3")
    assert ours(module.__name__, "f1")["description"].startswith("Does 3.")


def test_an_unknown_function_fails_as_before() -> None:
    theirs, ours = remembering()
    with pytest.raises(ValueError, match="not a user-defined function") as expected:
        theirs("letta.functions.function_sets.base", "nothing")

    for _ in range(2):
        with pytest.raises(ValueError, match="not a user-defined function") as raised:
            ours("letta.functions.function_sets.base", "nothing")
        assert str(raised.value) == str(expected.value)
