"""Settings: their sources, their bounds, and errors that an operator can act on."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from docs.generate import settings_page
from settings import Settings, SettingsError, load_settings, variable_name

pytestmark = pytest.mark.unit

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


def test_defaults_are_the_documented_ones() -> None:
    found = load_settings()
    assert found.redis_url == "redis://localhost:6379/0"
    assert found.cache_redis_url is None
    assert found.worker_count == 4
    assert found.worker_log_level == "INFO"
    assert found.use_redis_queue
    assert found.use_agent_cache


@pytest.mark.parametrize(
    ("variable", "value", "accepted"),
    [
        ("LETTA_WORKER_COUNT", "four", "accepted: int, >= 1, <= 256"),
        ("LETTA_WORKER_COUNT", "0", "accepted: int, >= 1, <= 256"),
        ("LETTA_WORKER_LOG_LEVEL", "LOUD", "one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
        ("LETTA_REDIS_URL", "http://localhost", "accepted: redis://"),
        ("LETTA_REDIS_URL", "redis://", "accepted: redis://"),
        ("LETTA_WEBHOOK_ALLOW_CIDRS", "10.0.0.0/8,banana", "accepted: CIDRs"),
        ("LETTA_LLM_BATCH_CRON", "every minute", "five or six fields"),
        ("LETTA_OPENAI_BASE_URL", "ftp://example.com", "http(s) URL"),
        ("LETTA_WORKER_FUNCTIONS", "no_colon", "package.module:coroutine"),
        ("LETTA_WORKER_CRONS", "a.b:c", "cron expression"),
        ("LETTA_WEBHOOK_PORTS", "443, 0", "accepted: 443, 8000-8999"),
        ("LETTA_WEBHOOK_PORTS", "9000-8000", "accepted: 443, 8000-8999"),
        ("LETTA_WEBHOOK_ALLOW_HOSTS", "a b", "accepted: name or"),
        ("LETTA_WEBHOOK_RETRY_DELAYS_S", "5 soon", "accepted: seconds"),
        ("LETTA_WEBHOOK_RETRY_DELAYS_S", "-1", "accepted: seconds"),
        ("LETTA_WEBHOOK_PROXY_URL", "socks5://x", "accepted: http://"),
        ("LETTA_WEBHOOK_TIMEOUT_S", "inf", "accepted: float, > 0, <= 120"),
        ("LETTA_WORKER_HEARTBEAT_TIMEOUT_S", "2", "accepted: 0 (off) or 5 to 3600"),
    ],
)
def test_an_error_names_the_variable_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, accepted: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    text = str(caught.value)
    assert text.startswith(f"{variable}: ")
    assert accepted in text
    assert "\n" not in text


@pytest.mark.parametrize("variable", ["LETTA_WEBHOOK_SECRET", "LETTA_WEBHOOK_ENCRYPTION_KEY"])
def test_a_wrong_secret_is_never_repeated(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "hunter2-hunter2")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_wrong_url_with_a_password_is_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETTA_REDIS_URL", "rediss//user:hunter2@host")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_no_secret_shows_in_the_repr() -> None:
    found = load_settings(
        redis_url="redis://:hunter2@h:1/0", webhook_secret=SECRET, openai_api_key="sk-hunter2"
    )
    assert "hunter2" not in repr(found)
    assert SECRET not in repr(found)


def test_every_wrong_variable_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETTA_WORKER_COUNT", "x")
    monkeypatch.setenv("LETTA_WORKER_MAX_JOBS", "-1")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    names = [line.partition(":")[0] for line in str(caught.value).splitlines()]
    assert names == ["LETTA_WORKER_COUNT", "LETTA_WORKER_MAX_JOBS"]


def test_environment_wins_over_dotenv_over_secrets_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "LETTA_WORKER_COUNT").write_text("3")
    (secrets / "LETTA_WORKER_MAX_JOBS").write_text("3")
    (secrets / "LETTA_WEBHOOK_SECRET").write_text(SECRET + "\n")
    (tmp_path / ".env").write_text(
        "LETTA_WORKER_COUNT=2\nLETTA_WORKER_MAX_JOBS=2\nLETTA_SOMEONE_ELSES=1\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LETTA_SECRETS_DIR", str(secrets))
    monkeypatch.setenv("LETTA_WORKER_COUNT", "1")
    found = load_settings()
    assert (found.worker_count, found.worker_max_jobs) == (1, 2)
    assert found.webhook_secret is not None
    assert found.webhook_secret.get_secret_value() == SECRET


def test_level_and_format_fold_case() -> None:
    found = load_settings(worker_log_level="debug", worker_log_format="JSON")
    assert (found.worker_log_level, found.worker_log_format) == ("DEBUG", "json")


def test_every_field_is_described_and_every_number_bounded() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, variable_name(name)
        if field.annotation in {int, float}:
            kinds = {type(m).__name__ for m in field.metadata}
            assert kinds & {"Ge", "Gt"}, variable_name(name)
            assert kinds & {"Le", "Lt"}, variable_name(name)


def test_the_page_names_every_setting_once() -> None:
    rows = [line.split("|")[1].strip() for line in settings_page().splitlines() if "| `" in line]
    assert rows
    assert len(rows) == len(set(rows))
