"""A seam is checked by its signature and the digest of its source."""

from __future__ import annotations

from functools import wraps
from typing import Any

import pytest

from letta_redis.__main__ import main
from letta_redis.plugin.seams import Feature, Seam, check, digest_of, signature_of

pytestmark = pytest.mark.unit

HERE = __name__


def decorated(function: Any) -> Any:
    @wraps(function)
    def outer(*args: Any) -> Any:
        return function(*args)

    return outer


class Manager:
    @decorated
    def read(self, name: str, limit: int = 5) -> str:
        return name * limit


def problem_of(**fields: Any) -> str | None:
    found = {"target": f"{HERE}:Manager.read", "signature": "(self, name, limit=5)", **fields}
    seam = Seam(purpose="is read", **found)
    return check(Feature("a feature", "cache", (seam,)), seam).problem


def test_a_known_seam_has_no_problem() -> None:
    digest = digest_of(Manager.read)

    assert signature_of(Manager.read) == "(self, name, limit=5)"
    assert problem_of() is None
    assert problem_of(digests=("another", digest)) is None
    assert problem_of(signature=None, digests=(digest,)) is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"target": "letta_redis_nowhere:read"}, "cannot be imported: ModuleNotFoundError"),
        ({"target": f"{HERE}:Manager.write"}, "does not exist"),
        ({"target": f"{HERE}:Nobody.read"}, "does not exist"),
        ({"target": f"{HERE}:HERE"}, "is not callable"),
        ({"signature": "(self, name)"}, "has the signature (self, name, limit=5)"),
        ({"digests": ("another",)}, "has a source of digest"),
        ({"target": "builtins:len", "signature": None, "digests": ("x",)}, "no source"),
    ],
)
def test_an_unknown_seam_says_what_differs(fields: dict[str, Any], words: str) -> None:
    assert words in str(problem_of(**fields))


def test_doctor_says_that_letta_is_not_installed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])

    assert ended.value.code == 2
    assert "letta is not installed" in capsys.readouterr().err
