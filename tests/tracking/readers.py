"""What the files of each library hold, read back by the library where it can read: points by name, and pictures."""

import json
import sqlite3
import struct
from collections import defaultdict
from pathlib import Path


def tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0}).Reload()
    tags = found.Tags()
    ends = found.Tensors("status") if "status" in tags["tensors"] else []
    status = [make_ndarray(event.tensor_proto).item().decode() for event in ends]
    points = {name: [(event.step, event.value) for event in found.Scalars(name)] for name in tags["scalars"]}
    return points, {name: [event.step for event in found.Images(name)] for name in tags["images"]}, status


def wandb(folder):
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    points, pictures, status = defaultdict(list), defaultdict(list), []
    for data in records_of(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        row = {tuple(item.nested_key) or (item.key,): json.loads(item.value_json) for item in record.history.item}
        status += [json.loads(item.value_json) for item in record.summary.update if item.key == "status"]
        for (name, *inner), value in row.items():
            if inner == ["_type"]:
                pictures[name].append(row[("round",)])
            elif not inner and name != "round" and not name.startswith("_"):
                points[name].append((row[("round",)], value))
    return dict(points), dict(pictures), status


def records_of(data):
    """The records of a file of W&B, whose Python package has no reader: after 7 bytes, LevelDB's log format.

    Blocks of 32 KiB have chunks of a checksum (4 bytes), a length (2), a type (1: whole, 2: first, 3: middle, 4: last)
    and content; fewer than 7 bytes at the end of a block are zero.
    """
    place, parts = 7, []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


def mlflow(folder):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("fedddpm").experiment_id])
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    points = {name: sorted((m.step, m.value) for m in history) for name, history in histories.items()}
    pictures = defaultdict(list)
    for path in sorted(folder.rglob("artifacts/images/*.png")):
        name, _, step, *_ = path.name.split("+")
        pictures[name.replace("~", "/")].append(int(step))
    pictures = {name: sorted(steps) for name, steps in pictures.items()}
    return points, pictures, [run.data.tags[key] for key in run.data.tags if key == "fedddpm.status"]


def trackio(folder):
    points, pictures, status = defaultdict(list), defaultdict(list), []
    with sqlite3.connect(folder / "fedddpm.db") as database:
        rows = database.execute("SELECT step, metrics FROM metrics ORDER BY id").fetchall()
    for step, text in rows:
        for name, value in json.loads(text).items():
            if name == "status":
                status.append(value)
            elif isinstance(value, dict):
                assert (folder / "media" / value["file_path"]).is_file()
                pictures[name].append(step)
            else:
                points[name].append((step, value))
    return dict(points), dict(pictures), status


READERS = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow, "trackio": trackio}


def read(library: str, run: Path):
    """Points by name as (round, value) in order, the rounds of pictures by name, and the statuses."""
    return READERS[library](run / "tracking" / library)
