import errno
import hashlib
from collections import namedtuple
from pathlib import Path

import pytest

from cosmos_nemo.checkpoint import download as module
from cosmos_nemo.checkpoint import hub, released, verified
from cosmos_nemo.checkpoint.download import AssetsFolder, download, free_bytes, size_text
from cosmos_nemo.checkpoint.hub import HubError, HubFile, Listing
from cosmos_nemo.checkpoint.released import HubFiles, network

Usage = namedtuple("Usage", "total used free")
ONE, TWO = network("nvidia/One", model="m"), network("nvidia/Two", model="m")
CONTENT = b"weights"
LISTING = Listing(commit="c", files=(HubFile(path="model.pt", size=len(CONTENT)),))


class Hub:
    """Stands for the real one: has model.pt of every repository, writes it, and may fail."""

    def __init__(self) -> None:
        self.is_offline = False
        self.fails: dict[str, Exception] = {}
        self.asked: list[str] = []
        self.sends: list[bytes] = []
        """What is written instead, one after the other."""

    def list_files(self, files: HubFiles) -> Listing:
        self.asked.append(f"list {files.repository}")
        return LISTING

    def check_access(self, files: HubFiles, listing: Listing) -> None:
        self.asked.append(f"access {files.repository}")

    def fetch_to_folder(self, files: HubFiles, listing: Listing, paths: list[str], *, folder: Path) -> None:
        self.asked.append(f"fetch {files.repository}")
        if files.repository in self.fails:
            raise self.fails[files.repository]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.pt").write_bytes(self.sends.pop(0) if self.sends else CONTENT)

    def fetch_again(self, files: HubFiles, listing: Listing, path: str, *, folder: Path) -> None:
        self.asked.append(f"again {files.repository}")
        self.fetch_to_folder(files, listing, [path], folder=folder)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub()
    for name in ("list_files", "check_access", "fetch_to_folder", "fetch_again"):
        monkeypatch.setattr(hub, name, getattr(fake, name))
    monkeypatch.setattr(hub, "is_offline", lambda: fake.is_offline)
    return fake


def run(root: Path, *wanted: HubFiles, dry_run: bool = False) -> tuple[int, str]:
    lines: list[str] = []
    place = AssetsFolder(root=root / "checkpoints")
    status = download(wanted, place, dry_run=dry_run, say=lines.append, warn=lines.append)
    return status, "\n".join(lines)


def test_everything_is_looked_at_before_anything_is_fetched(tmp_path: Path, fake: Hub) -> None:
    assert run(tmp_path, ONE, TWO)[0] == 0
    assert fake.asked == [
        *("list nvidia/One", "access nvidia/One", "list nvidia/Two", "access nvidia/Two"),
        *("fetch nvidia/One", "fetch nvidia/Two"),
    ]
    fake.asked.clear()
    assert run(tmp_path, ONE, TWO)[0] == 0
    assert fake.asked == ["list nvidia/One", "list nvidia/Two"]


@pytest.mark.parametrize(
    "error", [HubError("nvidia/One cannot be downloaded (reset)"), OSError(errno.ENOSPC, "No space left")]
)
def test_a_repository_that_fails_does_not_stop_the_next(error: Exception, tmp_path: Path, fake: Hub) -> None:
    fake.fails["nvidia/One"] = error
    status, said = run(tmp_path, ONE, TWO)
    assert status == 1 and "Missing, of 2 repositories" in said
    assert said.splitlines()[-1].startswith("  nvidia/One")
    assert (tmp_path / "checkpoints/Two/model.pt").is_file()


def test_files_that_are_cut_short_are_not_called_complete(tmp_path: Path, fake: Hub) -> None:
    fake.sends = [CONTENT[:-1]]
    status, said = run(tmp_path, ONE)
    assert status == 1 and "was not downloaded to the end: model.pt has 6 of 7 bytes" in said
    assert not verified.is_noted_complete(tmp_path / "checkpoints/One")
    fake.asked.clear()
    assert run(tmp_path, ONE)[0] == 0
    assert "again nvidia/One" in fake.asked, "the client's own record may call it whole"


def test_a_file_that_never_came_is_missing(
    tmp_path: Path, fake: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "fetch_to_folder", lambda *_, **__: None)
    status, said = run(tmp_path, ONE)
    assert status == 1 and "was not downloaded to the end: model.pt is missing" in said


@pytest.fixture
def hashed_listing(monkeypatch: pytest.MonkeyPatch) -> Listing:
    """As the hub lists a large file: its content is called by its SHA-256."""
    blob = hashlib.sha256(CONTENT).hexdigest()
    small = HubFile(path="config.json", size=2, blob="0" * 40)
    listing = Listing(commit="c", files=(HubFile(path="model.pt", size=len(CONTENT), blob=blob), small))
    monkeypatch.setattr(hub, "list_files", lambda files: listing)
    return listing


def test_where_no_md5_is_published_the_hubs_own_hash_counts(
    tmp_path: Path, fake: Hub, hashed_listing: Listing
) -> None:
    folder = tmp_path / "checkpoints/One"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(b"{}")
    fake.sends = [CONTENT.upper()]
    assert run(tmp_path, ONE)[0] == 0
    assert (folder / "model.pt").read_bytes() == CONTENT
    (folder / "model.pt").write_bytes(CONTENT.upper())
    fake.is_offline = True
    status, said = run(tmp_path, ONE)
    assert status == 1 and "has the SHA-256 sum" in said, "as it was noted when the hub was asked"
    fake.is_offline = False
    assert run(tmp_path, ONE)[0] == 0
    fake.is_offline = True
    assert run(tmp_path, ONE)[0] == 0


def test_a_hash_that_stays_wrong_sets_the_file_aside(
    tmp_path: Path, fake: Hub, hashed_listing: Listing
) -> None:
    folder = tmp_path / "checkpoints/One"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(b"{}")
    fake.sends = [CONTENT.upper()] * 2
    status, said = run(tmp_path, ONE)
    assert status == 1 and hashed_listing.files[0].blob in said
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        *("config.json", "model.pt.wrong-sha256")
    ]


def test_a_published_md5_spares_reading_a_file_twice(
    tmp_path: Path, fake: Hub, hashed_listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        released._MD5, ONE.repository, {"model.pt": hashlib.md5(CONTENT).hexdigest(), "gone.pt": "0" * 32}
    )
    kinds: list[str] = []
    real = verified.digest_of
    monkeypatch.setattr(verified, "digest_of", lambda path, kind: kinds.append(kind) or real(path, kind))
    (tmp_path / "checkpoints/One").mkdir(parents=True)
    (tmp_path / "checkpoints/One/config.json").write_bytes(b"{}")
    assert run(tmp_path, ONE)[0] == 0
    assert kinds == ["md5"]


def test_a_disk_without_room_for_everything_gets_nothing(
    tmp_path: Path, fake: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(100, 87, 2 * len(CONTENT) - 1))
    status, said = run(tmp_path, ONE, TWO)
    assert status == 1 and "The disk lacks 1 bytes: nothing is fetched" in said
    assert not any(one.startswith("fetch") for one in fake.asked)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(100, 86, 2 * len(CONTENT)))
    assert run(tmp_path, ONE, TWO)[0] == 0


def test_what_is_there_already_needs_no_room(
    tmp_path: Path, fake: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path, ONE)[0] == 0
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(100, 100, 0))
    assert run(tmp_path, ONE)[0] == 0


def test_the_part_that_a_stopped_download_left_needs_no_room(
    tmp_path: Path, fake: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / "checkpoints/One/.cache/huggingface/download/x.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:4])
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(100, 97, 3))
    status, said = run(tmp_path, ONE)
    assert status == 0 and "7 bytes, 3 bytes to fetch" in said


def test_a_verified_file_is_not_read_again(
    tmp_path: Path, fake: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sum_ = hashlib.md5(CONTENT).hexdigest()
    monkeypatch.setitem(released._MD5, ONE.repository, {"model.pt": sum_})
    hashed: list[Path] = []
    real = verified.digest_of
    monkeypatch.setattr(verified, "digest_of", lambda path, kind: hashed.append(path) or real(path, kind))
    assert run(tmp_path, ONE)[0] == run(tmp_path, ONE)[0] == 0
    fake.is_offline = True
    assert run(tmp_path, ONE)[0] == 0
    assert len(hashed) == 1


def test_a_dry_run_changes_nothing_and_reads_no_file(
    tmp_path: Path, fake: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(released._MD5, ONE.repository, {"model.pt": "0" * 32})
    folder = tmp_path / "checkpoints/One"
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(CONTENT)
    monkeypatch.setattr(verified, "digest_of", lambda *_: pytest.fail("read"))
    status, said = run(tmp_path, ONE, TWO, dry_run=True)
    assert status == 0 and "model.pt  (there)" in said and said.count("7 bytes  model.pt") == 2
    assert [path.name for path in folder.iterdir()] == ["model.pt"]
    assert not any(one.startswith("fetch") for one in fake.asked)


def test_a_dry_run_of_many_files_names_the_first_ones(
    tmp_path: Path, fake: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = tuple(HubFile(path=f"nemo/{number}.0", size=10**6) for number in range(1240))
    monkeypatch.setattr(hub, "list_files", lambda files: Listing(commit="c", files=many))
    status, said = run(tmp_path, ONE, dry_run=True)
    assert status == 0 and "1,240 files, 1.2 GB" in said and "1.2 GB  in 1,200 more files" in said
    assert len(said.splitlines()) < 60


def test_offline_a_folder_from_elsewhere_is_judged_by_what_it_holds(tmp_path: Path, fake: Hub) -> None:
    fake.is_offline = True
    status, said = run(tmp_path, ONE)
    assert status == 1 and "nvidia/One: there is no model.pt in " in said and "HF_HUB_OFFLINE" in said
    folder = tmp_path / "checkpoints/One"
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(CONTENT)
    assert run(tmp_path, ONE)[0] == 0
    part = folder / ".cache/huggingface/download/x.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"")
    status, said = run(tmp_path, ONE)
    assert status == 1 and "was not downloaded to the end" in said
    assert fake.asked == []


def test_free_space_is_that_of_the_disk_on_which_a_new_folder_would_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage(1, 0, len(str(path))))
    assert free_bytes(tmp_path / "new" / "checkpoints") == len(str(tmp_path))


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2 * 10**6, "2.0 MB"), (10**13, "10,000.0 GB")],
)
def test_sizes_are_written_as_people_say_them(num_bytes: int, text: str) -> None:
    assert size_text(num_bytes) == text
