"""Photos on S3: brought once, checked, and never out of their folder."""

import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cdiff.config import DataConfig
from cdiff.data import origin
from cdiff.data.dataset import Dataset
from cdiff.data.formats import read_sources
from cdiff.data.origin import _PATH, origin_of
from cdiff.data.s3 import READ, clients
from cdiff.errors import DataError


@pytest.fixture
def photos(bucket, tmp_path, trees, monkeypatch) -> str:
    """URL of an MVTec category with a name that no key of ours would have."""
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "cache"))
    trees.mvtec(tmp_path / "screw", {"bent (old)": 2}, good=2)
    prefix = f"{tmp_path.name}/screw"
    for path in (p for p in (tmp_path / "screw").rglob("*") if p.is_file()):
        name = path.relative_to(tmp_path / "screw").as_posix()
        clients(READ)[0].upload_file(str(path), "cdiff", f"{prefix}/{name}")
    clients(READ)[0].put_object(Bucket="cdiff", Key=f"{prefix}/", Body=b"")  # as consoles mark folders
    return f"{bucket}/{prefix}"


def _set(url: str) -> Dataset:
    found = origin_of(url)
    return Dataset(read_sources([str(found.folder)], None, DataConfig()), DataConfig(), [found])


def test_photos_on_s3_are_a_data_set_like_any_other(photos, tmp_path):
    far = _set(photos)
    near = Dataset(read_sources([str(tmp_path / "screw")], None, DataConfig()), DataConfig())
    assert [s.sample_id for s in far.samples] == [s.sample_id for s in near.samples]
    for sample in near.samples:
        assert (far.image(sample.sample_id) == near.image(sample.sample_id)).all()
        assert (far.mask(sample.sample_id) == near.mask(sample.sample_id)).all()


def test_what_is_here_is_not_fetched_again_and_what_changed_is(photos, monkeypatch, tmp_path):
    origin_of(photos)
    fetched: list[str] = []
    real = clients(READ)[0].download_file

    def counted(bucket: str, key: str, path: str) -> None:
        fetched.append(key.rpartition("screw/")[2])
        real(bucket, key, path)

    monkeypatch.setattr(clients(READ)[0], "download_file", counted)
    origin_of(photos)
    assert fetched == []
    key = photos.removeprefix("s3://cdiff/")
    (tmp_path / "new").write_bytes((tmp_path / "screw/train/good/001.png").read_bytes())
    clients(READ)[0].upload_file(str(tmp_path / "new"), "cdiff", f"{key}/train/good/000.png")
    clients(READ)[0].delete_object(Bucket="cdiff", Key=f"{key}/train/good/001.png")
    folder = origin_of(photos).folder
    assert fetched == ["train/good/000.png"]
    assert (folder / "train/good/000.png").read_bytes() == (tmp_path / "new").read_bytes()
    assert not (folder / "train/good/001.png").exists()


def test_a_fetch_that_is_cut_off_goes_on_and_leaves_nothing_of_what_has_gone(photos, monkeypatch):
    fetched: list[str] = []
    real, most = clients(READ)[0].download_file, [3]

    def counted(bucket: str, key: str, path: str) -> None:
        if len(fetched) == most[0]:
            raise KeyboardInterrupt
        fetched.append(key.rpartition("screw/")[2])
        real(bucket, key, path)

    monkeypatch.setattr(origin, "_AT_ONCE", 1)
    monkeypatch.setattr(clients(READ)[0], "download_file", counted)
    with pytest.raises(KeyboardInterrupt):
        origin_of(photos)
    first, gone = fetched[0], fetched[1]
    clients(READ)[0].delete_object(Bucket="cdiff", Key=f"{photos.removeprefix('s3://cdiff/')}/{gone}")
    fetched.clear()
    most[0] = 99
    folder = origin_of(photos).folder
    assert fetched and first not in fetched, "it goes on"
    assert (folder / first).is_file() and not (folder / gone).exists()


def test_both_ways_to_the_bucket_know_its_region(bucket):
    client, files = clients(READ)
    assert client.meta.region_name == files.region == os.environ["AWS_REGION"] != "us-east-1"


def test_another_machine_fetches_what_its_actors_ask_for(photos, monkeypatch):
    dataset, folder = _set(photos), origin_of(photos).folder
    shown = next(sample for sample in dataset.samples if not sample.is_normal)
    shutil.rmtree(folder)  # as on a machine that never saw the set
    monkeypatch.setattr(origin, "_checked", {})
    other = pickle.loads(pickle.dumps(dataset))  # noqa: S301 (our own bytes)
    assert other.image(shown.sample_id).any() and other.mask(shown.sample_id).any()
    there = {str(path) for path in folder.rglob("*") if path.is_file()}
    assert there == {shown.image, *(mask.path for mask in shown.masks)}


def test_what_an_earlier_run_left_on_another_machine_is_brought_anew(photos, monkeypatch):
    dataset, folder = _set(photos), origin_of(photos).folder
    shown = next(sample for sample in dataset.samples if not sample.is_normal)
    right = Path(shown.masks[0].path).read_bytes()
    Path(shown.masks[0].path).write_bytes(b"before it was corrected")
    monkeypatch.setattr(origin, "_checked", {})
    assert dataset.mask(shown.sample_id).any()
    assert Path(shown.masks[0].path).read_bytes() == right
    assert not [path for path in folder.rglob(".*") if path.is_file()]


def test_what_another_run_changed_or_removed_meanwhile_is_brought_anew(photos):
    """Both work in one cache; a mask was corrected in the bucket and taken back, or the other run was of fewer photos."""
    dataset = _set(photos)
    shown = next(sample for sample in dataset.samples if not sample.is_normal)
    mask = Path(shown.masks[0].path)
    right = mask.read_bytes()
    for spoil in (lambda: mask.write_bytes(b"corrected"), mask.unlink):
        dataset.here(str(mask))
        assert mask.read_bytes() == right
        spoil()
    dataset.here(str(mask))
    assert mask.read_bytes() == right


def test_a_linked_cache_serves_as_any_other(photos, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "link"))
    dataset = _set(photos)
    shutil.rmtree(origin_of(photos).folder)
    monkeypatch.setattr(origin, "_checked", {})
    assert dataset.image(dataset.samples[0].sample_id).any()


def test_a_photo_that_changed_since_the_start_is_refused(photos):
    dataset = _set(photos)
    sample = dataset.samples[0]
    folder = origin_of(photos).folder
    name = sample.image.removeprefix(f"{folder}/")
    shutil.rmtree(folder)
    clients(READ)[0].put_object(
        Bucket="cdiff", Key=f"{photos.removeprefix('s3://cdiff/')}/{name}", Body=b"other"
    )
    with pytest.raises(DataError, match="was changed since the run began"):
        dataset.image(sample.sample_id)
    assert not (folder / name).exists()


def test_nothing_there_and_other_places_are_told(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="nothing lies under"):
        origin_of(f"{bucket}/no/such/photos")
    for url in ("gs://bucket/x", "s3://"):
        with pytest.raises(DataError, match="neither a folder nor"):
            origin_of(url)


@pytest.mark.parametrize(
    "name", ["../x", "a/../b", "a/..", "./a", "/etc/passwd", "a\\b", "a\x00b", "a\nb", ""]
)
def test_keys_that_lead_out_of_the_folder_are_refused(name):
    assert not _PATH.fullmatch(name)


@pytest.mark.parametrize("name", ["a b/c (2).png", "ü.png", "...a", "a/x..y.png"])
def test_names_that_people_give_are_taken(name):
    assert _PATH.fullmatch(name)


def test_of_actors_that_start_together_one_fetches(photos, monkeypatch):
    fetched: list[str] = []
    real = clients(READ)[0].download_file

    def counted(bucket: str, key: str, path: str) -> None:
        fetched.append(key)
        real(bucket, key, path)

    monkeypatch.setattr(clients(READ)[0], "download_file", counted)
    with ThreadPoolExecutor(4) as pool:  # each opens the lock for itself, as processes do
        folders = {found.folder for found in pool.map(origin_of, [photos] * 4)}
    assert len(folders) == 1 and len(fetched) == len(set(fetched)) > 0
