"""Where settings come from, and what is said of those that cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from arcboxd import settings
from arcboxd.errors import InvalidArgumentError
from arcboxd.settings import GIB, MIB, Settings, parse_size


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_defaults_fit_the_host(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for memory, expected in ((2 * GIB, GIB), (10 * GIB + 7, 2560 * MIB), (64 * GIB, 4 * GIB)):
        monkeypatch.setattr(settings, "host_memory_bytes", lambda memory=memory: memory)
        assert settings.load(config, environ={}).default_memory_bytes == expected
    for cpus, expected in ((1, 1), (2, 2), (64, 4)):
        monkeypatch.setattr(settings, "host_cpus", lambda cpus=cpus: cpus)
        assert settings.load(config, environ={}).default_cpus == expected


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(config: Path) -> None:
    assert settings.load(config, environ={}).log_level == "info"
    config.write_text('log_level = "error"\ndefault_disk_bytes = "20GiB"\n')
    environ = {"ARCBOX_LOG_LEVEL": "warning", "ARCBOX_HOME": "/x", "ARCBOX_DEFAULT_CPUS": "3"}
    assert settings.load(config, environ={}).log_level == "error"
    assert settings.load(config, environ=environ).log_level == "warning"
    flags = {"log_level": "debug", "accelerator": None}
    loaded = settings.load(config, flags, environ)
    assert (loaded.log_level, loaded.accelerator) == ("debug", "auto")
    assert (loaded.default_disk_bytes, loaded.default_cpus) == (20 * GIB, 3)


@pytest.mark.parametrize(
    ("text", "key", "allowed"),
    [
        ("cpus = 2", "cpus", "default_cpus"),
        ("default_cpus = 0", "default_cpus", "1 to 255"),
        ("default_cpus = true", "default_cpus", "1 to 255"),
        ("default_cpus = 1.5", "default_cpus", "1 to 255"),
        ('default_memory_bytes = "lots"', "default_memory_bytes", "128MiB"),
        ("default_disk_bytes = 1", "default_disk_bytes", "4GiB"),
        ("stop_grace_s = 0", "stop_grace_s", "3600"),
        ("start_timeout_s = nan", "start_timeout_s", "3600"),
        ("start_timeout_s = []", "start_timeout_s", "3600"),
        ('accelerator = "hvf"', "accelerator", "auto, kvm or tcg"),
        ("log_level = 3", "log_level", "debug"),
        ('debian_mirror = "ftp://x"', "debian_mirror", "http"),
        ('default_distro = "Debian!"', "default_distro", "debian"),
        ('image_servers = "ftp://x"', "image_servers", "http"),
        ('image_servers = ["https://x", 7]', "image_servers", "http"),
        ("image_servers = true", "image_servers", "http"),
        ('image_keyring = "keys.gpg"', "image_keyring", "absolute"),
    ],
)
def test_a_bad_value_names_the_key_the_file_and_what_is_allowed(
    config: Path, text: str, key: str, allowed: str
) -> None:
    config.write_text(text)
    with pytest.raises(InvalidArgumentError) as caught:
        settings.load(config, environ={})
    assert repr(key) in caught.value.message
    assert str(config) in caught.value.message
    assert allowed in caught.value.hint


def test_addresses_come_as_a_list_or_with_commas(config: Path) -> None:
    assert len(settings.load(config, environ={}).image_servers) == 1
    config.write_text('image_servers = ["https://a.example/x", "http://me:pw@b.example:80"]')
    loaded = settings.load(config, environ={})
    assert loaded.image_servers == ("https://a.example/x", "http://me:pw@b.example:80")
    environ = {"ARCBOX_IMAGE_SERVERS": "https://a.example, https://b.example"}
    loaded = settings.load(config, environ=environ)
    assert loaded.image_servers == ("https://a.example", "https://b.example")
    config.write_text("image_servers = []")
    assert settings.load(config, environ={}).image_servers == ()


def test_where_forwards_listen(config: Path) -> None:
    assert settings.load(config, environ={}).published_address == "127.0.0.1"
    for text, address in (("0.0.0.0", "0.0.0.0"), ("0:0::1", "::1")):  # noqa: S104
        loaded = settings.load(config, environ={"ARCBOX_PUBLISHED_ADDRESS": text})
        assert loaded.published_address == address
    for text in ("web", "1.2.3", "10.0.0.0/8"):
        with pytest.raises(InvalidArgumentError, match="published_address"):
            settings.load(config, environ={"ARCBOX_PUBLISHED_ADDRESS": text})


def test_a_file_that_is_no_toml_is_named(config: Path) -> None:
    config.write_text("= =")
    with pytest.raises(InvalidArgumentError, match=str(config)):
        settings.load(config, environ={})


def test_a_bad_variable_is_named(config: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="ARCBOX_ACCELERATOR"):
        settings.load(config, environ={"ARCBOX_ACCELERATOR": "x"})


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MiB", 512 * MIB), ("4G", 4 * GIB), ("1 TB", 1 << 40), ("7", 7), ("8k", 8192), ("9B", 9)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["G", "-1G", "1.5G", "4 X", "1e3"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        parse_size(text)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Settings.for_host().default_cpus = 9  # type: ignore[misc]
