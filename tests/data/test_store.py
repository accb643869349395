"""Run folders and shards: what is committed is there, whole; what is not does not exist."""

import json
import pickle

import pyarrow.parquet as pq
import pytest
import yaml

from cdiff.config import Config
from cdiff.config_file import dump_config, load_config
from cdiff.data.run import find_run, home_of, open_run
from cdiff.data.store import (
    IMAGES,
    Run,
    ShardRow,
    create_run,
    read_attempts,
    read_crops,
    read_pair,
    read_provenance,
    safe_name,
    shard_committed,
    shard_name,
    write_shard,
)
from cdiff.errors import RunError
from cdiff.types import Assignment, Attempt, GenerationTask, Pose, Recipe, Revisions, Strengths
from tests.bare_run import Splits, bare_run


@pytest.fixture
def run(tmp_path) -> Run:
    return bare_run(tmp_path / "home")


def assignment(number: int) -> Assignment:
    recipe = Recipe("mask_first", "B1", 3, 0.25, 16, "euler", "float32", 8, 2)
    pose = Pose(10.1, 20.0 / 3, -3.5, 1.1, True, 0.05, 1.7)
    strengths = Strengths(safe_strength=2.0, start_strength=0.1 + 0.2)
    revisions = Revisions("g" * 16, "b" * 16, "s" * 16)
    task = GenerationTask(
        recipe, f"metal/pit/{number}#0", "metal/good/1", pose, strengths, 2**63 + number, revisions
    )
    return Assignment(task, "metal/pit/small", "weak", number)


def rows_of(count: int, weight: int = 20) -> tuple[str, list[ShardRow]]:
    plan = [assignment(number) for number in range(count)]
    name = shard_name(plan)
    rows = [
        ShardRow(
            Attempt(
                item,
                name,
                number,
                "metal",
                "pit",
                (1, 2, 30, 40),
                (("loss", 0.1 * number),),
                bytes(range(24)),
            ),
            *(f"{column}{number}".encode() + b"x" * weight for column in IMAGES),
        )
        for number, item in enumerate(plan)
    ]
    return name, rows


def test_attempts_come_back_from_a_shard_exactly(run):
    name, rows = rows_of(5)
    assert write_shard(run, name, rows) == name
    assert read_attempts(run, name) == [row.attempt for row in rows]
    assert [attempt.task_id for attempt in read_attempts(run, name)] == [row.attempt.task_id for row in rows]


def test_pixels_come_back_byte_for_byte_from_every_row_group(run):
    name, rows = rows_of(5, weight=500_000)  # five columns: one row fills more than half a row group
    write_shard(run, name, rows)
    assert pq.ParquetFile(run.path / name).num_row_groups == 5
    for row in rows:
        assert read_pair(run, row.attempt) == (row.image_png, row.mask_png)
        assert read_crops(run, row.attempt) == (row.crop_png, row.reference_png, row.region_png)


def test_image_columns_have_no_dictionary_statistics_or_compression(run):
    name, rows = rows_of(3)
    write_shard(run, name, rows)
    group = pq.ParquetFile(run.path / name).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for column in IMAGES:
        assert columns[column].compression == "UNCOMPRESSED"
        assert not columns[column].is_stats_set
        assert not columns[column].has_dictionary_page
    assert columns["slice"].is_stats_set


def test_a_shard_without_commit_does_not_exist(run):
    name, rows = rows_of(2)
    assert not shard_committed(run, name)
    write_shard(run, name, rows)
    assert shard_committed(run, name)
    (run.path / f"{name}.COMMIT").unlink()
    assert not shard_committed(run, name)
    with pytest.raises(RunError, match="COMMIT"):
        read_attempts(run, name)


@pytest.mark.parametrize("damage", ["torn", "changed", "commit torn"])
def test_a_damaged_shard_does_not_exist_and_can_be_made_again(run, damage):
    name, rows = rows_of(2)
    write_shard(run, name, rows)
    path = run.path / (f"{name}.COMMIT" if damage == "commit torn" else name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data if damage == "changed" else data[:-20])
    assert not shard_committed(run, name)
    write_shard(run, name, rows)
    assert read_attempts(run, name) == [row.attempt for row in rows]


def test_changed_pixels_are_noticed_when_a_pair_is_read(run):
    name, rows = rows_of(2)
    write_shard(run, name, rows)
    path = run.path / name
    data = path.read_bytes()
    path.write_bytes(data.replace(b"image_png1xxx", b"image_png1xyx"))
    with pytest.raises(RunError, match="cannot read"):
        read_pair(run, rows[1].attempt)


def test_the_same_rows_give_the_same_bytes_and_no_litter(run):
    name, rows = rows_of(3)
    write_shard(run, name, rows)
    first = (run.path / name).read_bytes()
    write_shard(run, name, rows)
    assert (run.path / name).read_bytes() == first
    assert sorted(path.name for path in run.pairs.iterdir()) == sorted(
        [name.removeprefix("pairs/"), name.removeprefix("pairs/") + ".COMMIT"]
    )


def test_a_row_in_the_wrong_place_is_refused(run):
    name, rows = rows_of(2)
    with pytest.raises(ValueError, match="row 0"):
        write_shard(run, name, rows[::-1])
    assert not list(run.pairs.iterdir())


def test_provenance_has_flat_columns_and_no_pixels(run):
    name, rows = rows_of(2)
    write_shard(run, name, rows)
    record = read_provenance(run, name).to_pylist()[1]
    assert not set(IMAGES) & set(record)
    assert record["reference"] == "metal/pit/1#0"
    assert record["start_strength"] == 0.1 + 0.2
    assert json.loads(record["pose"])["angle"] == -3.5
    assert record["revision_generator"] == "g" * 16


def test_a_shard_name_depends_on_its_tasks_and_their_order():
    plan = [assignment(number) for number in range(3)]
    assert shard_name(plan) == shard_name(list(plan))
    assert len({shard_name(plan), shard_name(plan[::-1]), shard_name(plan[:2])}) == 3


def test_only_shard_names_become_paths(run):
    with pytest.raises(RunError, match="name of a shard"):
        shard_committed(run, "../../etc/passwd")
    with pytest.raises(RunError, match="revision"):
        run.checkpoint("../outside")


def test_a_run_is_resumed_with_equal_configuration_and_data(tmp_path):
    first = create_run(tmp_path, "one", dump_config(Config()), Splits())
    (first.report_dir / "kept.txt").write_text("x")
    assert create_run(tmp_path, "one", dump_config(Config()), Splits()) == first == open_run(first.path)
    assert (first.report_dir / "kept.txt").exists()
    assert first.home == tmp_path
    assert pickle.loads(pickle.dumps(first)) == first  # noqa: S301  # crosses to actors


def test_a_run_of_a_version_that_knew_fewer_settings_goes_on(tmp_path):
    """Without a setting nothing was done about it, as by its default."""
    whole = Config().model_dump(mode="json")
    earlier = {
        name: dict(section) if isinstance(section, dict) else section for name, section in whole.items()
    }
    del earlier["train"], earlier["generator"]["backbone"], earlier["safe"]["features"]
    first = create_run(tmp_path, "one", yaml.safe_dump(earlier), Splits())
    assert create_run(tmp_path, "one", dump_config(Config()), Splits()) == first
    latent = {"backbone": "latent", "weights": "/models/sd"}
    other = Config.model_validate({"generator": latent})
    with pytest.raises(RunError, match=r"generator\.backbone: 'pixel' there, 'latent' now"):
        create_run(tmp_path, "one", dump_config(other), Splits())


def test_a_run_of_another_configuration_is_refused_with_what_differs(tmp_path):
    create_run(tmp_path, "one", dump_config(Config()), Splits())
    other = dump_config(load_config(None, ["generator.steps=7"]))
    with pytest.raises(RunError, match=r"generator\.steps: 1500 there, 7 now"):
        create_run(tmp_path, "one", other, Splits())
    lean = dump_config(load_config(None, ["data.cache_megabytes=300", "resources.downstreams=1"]))
    assert create_run(tmp_path, "one", lean, Splits()).name == "one", (
        "what is short of memory goes on with less"
    )


def test_a_run_of_other_data_is_refused(tmp_path):
    create_run(tmp_path, "one", dump_config(Config()), Splits())
    with pytest.raises(RunError, match="split abc there, xyz now"):
        create_run(tmp_path, "one", dump_config(Config()), Splits("xyz"))


def test_a_run_whose_photos_or_masks_were_changed_is_refused(tmp_path):
    create_run(tmp_path, "one", dump_config(Config()), Splits())
    with pytest.raises(RunError, match="photos or masks of the same names have other content"):
        create_run(tmp_path, "one", dump_config(Config()), Splits(photos="xyz"))


def test_a_run_of_a_version_that_knew_no_content_goes_on(tmp_path):
    first = create_run(tmp_path, "one", dump_config(Config()), Splits())
    told = json.loads(first.storage.read("run.json"))
    del told["photos_hash"]
    first.storage.write("run.json", json.dumps(told).encode())
    assert create_run(tmp_path, "one", dump_config(Config()), Splits(photos="xyz")) == first


def test_a_run_that_crashed_while_it_was_made_is_made_again(tmp_path):
    first = create_run(tmp_path, "one", dump_config(Config()), Splits())
    (first.path / "run.json").unlink()
    other = dump_config(load_config(None, ["generator.steps=7"]))
    assert (create_run(tmp_path, "one", other, Splits()).path / "config.yaml").read_text() == other


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b", "x" * 101])
def test_a_run_name_is_one_plain_folder_name(tmp_path, name):
    with pytest.raises(RunError, match="run name"):
        create_run(tmp_path, name, dump_config(Config()), Splits())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"no run\.json"):
        open_run(tmp_path)


def test_the_home_is_absolute_and_the_flag_goes_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert home_of("here", {"CDIFF_HOME": "/there"}) == str(tmp_path / "here")
    assert home_of(None, {"CDIFF_HOME": "/there"}) == "/there"
    monkeypatch.setenv("HOME", "/root-of-me")
    assert home_of(None, {}) == "/root-of-me/cdiff"


def test_unlike_texts_get_unlike_safe_names():
    texts = [
        "crack",
        "crack+",
        "crack*",
        "a/b",
        "a_b",
        "../x",
        "..",
        "",
        " ",
        "x" * 300,
        "x" * 301,
        "Überzug 2",
    ]
    names = [safe_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    assert names[0] == "crack"
    assert names[-1] == "Überzug 2"
    assert not any("/" in name or name.startswith(".") or not name for name in names)


def test_a_run_on_s3_is_whole_on_a_machine_that_never_saw_it(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "one"))
    run = create_run(f"{bucket}/home", "far", dump_config(Config()), Splits())
    name, rows = rows_of(3)
    write_shard(run, name, rows)
    folder = run.checkpoint("segmenter-1")
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    run.publish("checkpoints/segmenter-1")
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "other"))
    again = pickle.loads(pickle.dumps(find_run("far", f"{bucket}/home")))  # noqa: S301 (our own bytes)
    assert again.path.is_relative_to(tmp_path / "other") and not again.path.exists()
    assert shard_committed(again, name) and read_attempts(again, name) == [row.attempt for row in rows]
    assert read_pair(again, rows[2].attempt) == (rows[2].image_png, rows[2].mask_png)
    assert (again.checkpoint("segmenter-1") / "model.safetensors").read_bytes() == b"weights"
    assert not again.checkpoint("segmenter-2").exists()
    with pytest.raises(RunError, match=r"wasm\.pairs"):
        create_run(f"{bucket}/home", "far", dump_config(load_config(None, ["wasm.pairs=9"])), Splits())
    with pytest.raises(RunError, match="no run"):
        open_run(f"{bucket}/home/runs/none")


def test_a_changed_revision_on_s3_is_not_used(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "one"))
    run = create_run(f"{bucket}/home", "changed", dump_config(Config()), Splits())
    (run.checkpoint("r") / "deep").mkdir(parents=True)
    (run.path / "checkpoints/r/deep/weights").write_bytes(b"right")
    run.publish("checkpoints/r")
    run.storage.write("checkpoints/r/deep/weights", b"wrong")
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "other"))
    with pytest.raises(RunError, match="changed after its commit"):
        run.checkpoint("r")


def test_a_run_may_be_asked_for_more_rounds_on_other_resources(tmp_path):
    create_run(tmp_path, "one", dump_config(load_config(None, ["rounds=2"])), Splits())
    more = load_config(None, ["rounds=5", "resources.generators=1", "tracking.experiment=other"])
    assert create_run(tmp_path, "one", dump_config(more), Splits()).path.is_dir()
    with pytest.raises(RunError, match=r"seed: 0 there, 1 now"):
        create_run(tmp_path, "one", dump_config(load_config(None, ["rounds=5", "seed=1"])), Splits())


def test_what_a_crash_left_beside_a_report_is_not_published(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path))
    run = create_run(f"{bucket}/home", "crashed", dump_config(Config()), Splits())
    (run.report_dir / ".report.html.0123.tmp").write_bytes(b"half")
    (run.report_dir / "report.html").write_bytes(b"whole")
    run.publish("report")
    assert run.storage.keys("report") == ["report.COMMIT", "report/report.html"]


def test_the_mirror_of_a_deleted_run_is_not_taken_for_the_new_one(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path))
    run = create_run(f"{bucket}/home", "again", dump_config(Config()), Splits())
    (run.checkpoints / "generator-a").mkdir()
    for key in run.storage.keys(""):
        run.storage.delete(key)
    new = create_run(f"{bucket}/home", "again", dump_config(load_config(None, ["seed=1"])), Splits())
    assert new.path == run.path and not list(new.checkpoints.iterdir())


def test_a_shard_that_was_changed_on_s3_is_not_read(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "one"))
    run = create_run(f"{bucket}/home", "shards", dump_config(Config()), Splits())
    name, rows = rows_of(2)
    write_shard(run, name, rows)
    data = run.storage.read(name)
    run.storage.write(name, data[:-1] + bytes([data[-1] ^ 1]))  # as long as before
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "other"))
    with pytest.raises(RunError, match="changed later"):
        read_pair(run, rows[0].attempt)
    with pytest.raises(RunError, match="changed later"):
        read_pair(run, rows[0].attempt)  # nor is what was fetched kept


@pytest.mark.parametrize("url", ["s3://b/runs/..", "s3://b/x/runs/", "s3://b/x", "s3://b/runs/../../x"])
def test_urls_that_are_no_run_are_refused(url):
    with pytest.raises(RunError, match="no run"):
        find_run(url)


def test_a_home_must_be_a_place():
    for told in ("s3://", "gs://bucket"):
        with pytest.raises(RunError, match="s3://BUCKET"):
            home_of(told, {})


def test_room_is_demanded_before_the_work(tmp_path):
    run = create_run(tmp_path, "one", dump_config(Config()), Splits())
    run.demand_room(1000, "2 pairs")
    with pytest.raises(RunError, match=r"2 pairs need about 1000000000\.0 GB .* are free\. Free the disk"):
        run.demand_room(10**18, "2 pairs")
