"""Settings and the secret: where each value comes from, and what is not accepted."""

from __future__ import annotations

import dataclasses
import os
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from cluster import config
from cluster.config import Settings
from cluster.errors import SettingError
from cluster.secret import SECRET_FILE, load_or_create_secret


def _write_settings(directory: Path, text: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / config.SETTINGS_FILE).write_text(text)


def test_without_any_source_the_defaults_are_in_force(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(config.ENVIRONMENT_PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    settings = config.load()
    assert settings == Settings()
    assert settings.directory == tmp_path / "cluster"
    assert settings.scheduler_port == 8770
    assert settings.worker_timeout_seconds == 10.0
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.load().directory == tmp_path / ".config" / "cluster"


def test_an_argument_goes_before_the_environment_before_the_file_before_the_default(
    own_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config.load().scheduler_port == 8770
    _write_settings(own_directory, "scheduler_port = 1\n")
    assert config.load().scheduler_port == 1
    monkeypatch.setenv("CLUSTER__SCHEDULER_PORT", "2")
    assert config.load().scheduler_port == 2
    assert config.load(scheduler_port=3).scheduler_port == 3
    assert config.load(scheduler_port=None).scheduler_port == 2


def test_the_file_is_the_one_in_the_directory_that_is_in_force(own_directory: Path, tmp_path: Path) -> None:
    _write_settings(own_directory, 'address = "tcp://127.0.0.1:1"\n')
    other = tmp_path / "other"
    _write_settings(other, 'address = "tcp://127.0.0.1:2"\n')
    assert config.load().address == "tcp://127.0.0.1:1"
    assert config.load(directory=str(other)).address == "tcp://127.0.0.1:2"


def test_values_are_read_by_the_kind_of_their_setting(own_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_settings(own_directory, 'lineage_bytes = "2GB"\nlineage_rows = 5e3\ndrain_seconds = 7\n')
    monkeypatch.setenv("CLUSTER__HEARTBEAT_INTERVAL_SECONDS", "0.5")
    monkeypatch.setenv("CLUSTER__SHARED_MEMORY_DIRECTORY", "~/here")
    monkeypatch.setenv("CLUSTER__ADDRESS", "")
    settings = config.load()
    assert settings.lineage_bytes == 2_000_000_000
    assert settings.lineage_rows == 5000
    assert type(settings.lineage_rows) is int
    assert settings.drain_seconds == 7.0
    assert type(settings.drain_seconds) is float
    assert settings.heartbeat_interval_seconds == 0.5
    assert settings.shared_memory_directory == Path.home() / "here"
    assert settings.address is None


@pytest.mark.parametrize(
    ("written", "meant"), [("1", True), ("True", True), ("yes", True), ("0", False), ("false", False), (" NO ", False)]
)
def test_a_truth_value_is_written_in_the_usual_words(
    own_directory: Path, monkeypatch: pytest.MonkeyPatch, written: str, meant: bool
) -> None:
    monkeypatch.delenv("CLUSTER__FAST_PATHS", raising=False)
    assert config.load().fast_paths is True
    _write_settings(own_directory, f"fast_paths = {str(meant).lower()}\n")
    assert config.load().fast_paths is meant
    monkeypatch.setenv("CLUSTER__FAST_PATHS", written)
    assert config.load().fast_paths is meant
    assert config.load(fast_paths=not meant).fast_paths is not meant


def test_without_fast_paths_values_are_kept_in_files_unless_a_place_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert config.load(fast_paths=False).shared_memory_directory == tmp_path  # what the environment says
    monkeypatch.delenv("CLUSTER__SHARED_MEMORY_DIRECTORY")
    assert config.load(fast_paths=False).shared_memory_directory == Path(tempfile.gettempdir())
    assert config.load(fast_paths=True).shared_memory_directory == Settings().shared_memory_directory


def test_an_unknown_name_is_an_error_with_the_nearest_setting(
    own_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingError, match="did you mean scheduler_port"):
        config.load(scheduler_prt=1)
    _write_settings(own_directory, "drain_time = 3\n")
    with pytest.raises(SettingError, match=r"settings\.toml has drain_time.*did you mean drain_seconds"):
        config.load()
    _write_settings(own_directory, "")
    monkeypatch.setenv("CLUSTER__HEARTBEAT_INTERVAL", "1")
    with pytest.raises(SettingError, match="did you mean CLUSTER__HEARTBEAT_INTERVAL_SECONDS"):
        config.load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scheduler_port", "http"),
        ("scheduler_port", 70000),
        ("scheduler_port", 1.5),
        ("scheduler_port", True),
        ("lead_seconds", "fast"),
        ("lead_seconds", -1),
        ("lead_seconds", float("nan")),
        ("lineage_bytes", "much"),
        ("lineage_rows", -1),
        ("address", 8770),
        ("shared_memory_directory", 5),
        ("shared_memory_directory", ""),
        ("worker_timeout_seconds", 1.0),
        ("fast_paths", "perhaps"),
        ("fast_paths", 2),
        ("fast_paths", ""),
    ],
)
def test_a_value_without_sense_is_an_error_that_names_the_setting(name: str, value: object) -> None:
    with pytest.raises(SettingError, match=name):
        config.load(**{name: value})


def test_a_file_that_cannot_be_read_is_named(own_directory: Path) -> None:
    _write_settings(own_directory, "scheduler_port = = 1")
    with pytest.raises(SettingError, match=r"settings\.toml is not valid TOML"):
        config.load()
    (own_directory / config.SETTINGS_FILE).unlink()
    (own_directory / config.SETTINGS_FILE).mkdir()
    with pytest.raises(SettingError, match=r"settings\.toml cannot be read"):
        config.load()


def test_the_file_cannot_move_its_own_directory(own_directory: Path) -> None:
    _write_settings(own_directory, 'directory = "/elsewhere"\n')
    with pytest.raises(SettingError, match="CLUSTER__DIRECTORY"):
        config.load()


def test_settings_cannot_be_changed_once_loaded() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.load().scheduler_port = 1  # type: ignore[misc]


def test_the_secret_is_made_once_for_its_user_alone(own_directory: Path) -> None:
    secret = load_or_create_secret(own_directory)
    assert len(secret) == 32
    assert load_or_create_secret(own_directory) == secret
    assert stat.S_IMODE(own_directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((own_directory / SECRET_FILE).stat().st_mode) == 0o600
    assert os.listdir(own_directory) == [SECRET_FILE]
    assert load_or_create_secret(own_directory / "another") != secret


def test_processes_that_start_together_end_with_one_secret(own_directory: Path) -> None:
    found: list[bytes] = []
    start = threading.Barrier(8)

    def load() -> None:
        start.wait()
        found.append(load_or_create_secret(own_directory))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert os.listdir(own_directory) == [SECRET_FILE]


def test_a_secret_that_others_could_read_or_replace_is_refused_with_the_remedy(own_directory: Path) -> None:
    load_or_create_secret(own_directory)
    file = own_directory / SECRET_FILE
    file.chmod(0o640)
    with pytest.raises(SettingError, match="chmod 600"):
        load_or_create_secret(own_directory)
    file.chmod(0o600)
    own_directory.chmod(0o720)
    with pytest.raises(SettingError, match="chmod 700"):
        load_or_create_secret(own_directory)


def test_a_link_or_a_pipe_in_place_of_the_secret_is_refused(own_directory: Path, tmp_path: Path) -> None:
    load_or_create_secret(tmp_path / "real")
    own_directory.mkdir(mode=0o700)
    file = own_directory / SECRET_FILE
    file.symlink_to(tmp_path / "real" / SECRET_FILE)
    with pytest.raises(SettingError, match="symbolic link"):
        load_or_create_secret(own_directory)
    file.unlink()
    os.mkfifo(file, 0o600)
    with pytest.raises(SettingError, match="no regular file"):
        load_or_create_secret(own_directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_secret_of_another_user_is_refused(own_directory: Path) -> None:
    load_or_create_secret(own_directory)
    os.chown(own_directory / SECRET_FILE, 12345, -1)
    with pytest.raises(SettingError, match="belongs to user 12345"):
        load_or_create_secret(own_directory)


@pytest.mark.parametrize("text", ["", "abc", "zz" * 32, "ab" * 31, "ab" * 33, "\N{SNOWMAN}" * 64])
def test_a_file_that_holds_no_secret_is_refused_not_replaced(own_directory: Path, text: str) -> None:
    load_or_create_secret(own_directory)
    (own_directory / SECRET_FILE).write_text(text)
    with pytest.raises(SettingError, match="does not hold a secret"):
        load_or_create_secret(own_directory)
    assert (own_directory / SECRET_FILE).read_text() == text


def test_a_place_where_no_secret_can_be_kept_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="cannot be read or made"):
        load_or_create_secret(tmp_path / "file" / "directory")


# --------------------------------------------------------------------------- the project's file


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder; the working directory is two folders below."""
    folder = tmp_path / "project"
    (folder / "source" / "deep").mkdir(parents=True)
    monkeypatch.chdir(folder / "source" / "deep")
    return folder


@pytest.mark.parametrize("name", [config.PROJECT_FILE, config.SHARED_PROJECT_FILE])
def test_the_nearest_project_file_goes_after_the_environment_before_the_users_file(
    name: str, project: Path, own_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = "[tool.cluster]\n" if name == config.SHARED_PROJECT_FILE else ""
    _write_settings(own_directory, "scheduler_port = 1\ndrain_seconds = 1\n")
    (project / name).write_text(f"{table}scheduler_port = 2\nlead_seconds = 2\n")
    assert (config.load().scheduler_port, config.load().drain_seconds, config.load().lead_seconds) == (2, 1.0, 2.0)
    # What has no settings of ours is passed over, also when it names us.
    (project / "source" / config.SHARED_PROJECT_FILE).write_text('[project]\nname = "cluster"\n')
    assert config.load().scheduler_port == 2
    (project / "source" / name).write_text(f"{table}scheduler_port = 3\n")
    assert (config.load().scheduler_port, config.load().lead_seconds) == (3, 0.010)
    monkeypatch.setenv("CLUSTER__SCHEDULER_PORT", "4")
    assert config.load().scheduler_port == 4
    assert config.load(scheduler_port=5).scheduler_port == 5


def test_a_project_file_may_move_the_directory_and_its_paths_start_at_its_own_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLUSTER__DIRECTORY")
    monkeypatch.delenv("CLUSTER__SHARED_MEMORY_DIRECTORY")
    (project / config.PROJECT_FILE).write_text('directory = ".secrets"\n')
    _write_settings(project / ".secrets", 'shared_memory_directory = "values"\n')
    settings = config.load()
    assert settings.directory == project / ".secrets"
    assert settings.shared_memory_directory == project / ".secrets" / "values"


def test_mistakes_in_a_project_file_are_named(project: Path) -> None:
    shared = project / config.SHARED_PROJECT_FILE
    shared.write_text("[tool.cluster]\nschedulerport = 1\n")
    with pytest.raises(SettingError, match=r"pyproject\.toml has schedulerport.*did you mean scheduler_port"):
        config.load()
    shared.write_text("[tool]\ncluster = 3\n")
    with pytest.raises(SettingError, match="must be a table"):
        config.load()
    shared.write_text("[tool.cluster\n")
    with pytest.raises(SettingError, match=r"pyproject\.toml is not valid TOML"):
        config.load()
    shared.write_text("[tool.cluster]\n")
    (project / config.PROJECT_FILE).write_text("")
    with pytest.raises(SettingError, match="keep one of them"):
        config.load()


def test_a_working_directory_that_is_gone_has_no_project(project: Path) -> None:
    (project / "source" / "deep").rmdir()
    assert config.load() == Settings(directory=config.load().directory, shared_memory_directory=project.parent)


def test_each_setting_is_described_with_its_sentence_unit_and_origin(
    project: Path, own_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_settings(own_directory, "drain_seconds = 7\n")
    (project / config.PROJECT_FILE).write_text("lineage_rows = 5\n")
    monkeypatch.setenv("CLUSTER__LEAD_SECONDS", "0.5")
    found = {report.name: report for report in config.describe(scheduler_port=9000)}
    assert list(found) == [one.name for one in dataclasses.fields(Settings)]
    assert len(found) < 25
    assert all(report.sentence.endswith(".") for report in found.values())
    origins = {
        "scheduler_port": "argument",
        "lead_seconds": "environment CLUSTER__LEAD_SECONDS",
        "lineage_rows": str(project / config.PROJECT_FILE),
        "drain_seconds": str(own_directory / config.SETTINGS_FILE),
        "client_grace_seconds": "default",
    }
    assert {name: found[name].origin for name in origins} == origins
    drain = found["drain_seconds"]
    assert (drain.value, drain.default, drain.unit) == (7.0, 30.0, "seconds")
    assert found["address"].kind == "str or none"
