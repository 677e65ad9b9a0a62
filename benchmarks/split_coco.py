"""Join COCO-format annotation files and split their photographs into those to train on and others.

    python benchmarks/split_coco.py --root DATA --held-out 400 --seed 1 --output FOLDER \\
      coco_small/instances_train.json=coco_small/images more.json=more/images

Each argument is ANNOTATIONS=IMAGES, both relative to --root. Writes FOLDER/train.json and
FOLDER/held_out.json; their file names are relative to --root, which is then what `sparsedet train`
and `sparsedet eval` get as --images. A photograph's id and the seed alone decide, so that more
data leave the photographs held out where they are, as long as no new one comes before them.

With --mark-crowds 13, an annotation file that marks no crowd at all gets one around every class of
which a photograph has 13 objects or more: COCO's annotators drew 10 to 15 objects of a class and
marked the others as a crowd, and some lists of its boxes leave the crowds out. In 2,852 photographs
with the marks, of the groups of 11 objects 5 % have a crowd beside them, of 12 31 %, of 13 72 %, of
more all; the box around the objects covers on average 76 % of the crowd's.

Classes are joined by name; ids of photographs must differ, ids of annotations are counted anew.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from sparsedet import InputError
from sparsedet.evaluation.coco_fields import id_key
from sparsedet.files import check_output, make_folder, read_json, write_atomic

Data = dict[str, Any]


def mark_crowds(data: Data, least: int) -> list[Data]:
    """The annotations, with a crowd around every class of which an image has at least `least`
    objects; as they are if one of them is a crowd already.
    """
    rows: list[Data] = data["annotations"]
    if any(row.get("iscrowd") for row in rows):
        return rows
    groups: dict[Any, list[Data]] = {}
    for row in rows:
        groups.setdefault((id_key(row["image_id"]), row["category_id"]), []).append(row)
    crowds = []
    for group in groups.values():
        if len(group) >= least:
            x0, y0 = (min(row["bbox"][axis] for row in group) for axis in (0, 1))
            x1, y1 = (max(r["bbox"][axis] + r["bbox"][axis + 2] for r in group) for axis in (0, 1))
            box = [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
            crowds.append({**group[0], "bbox": box, "area": box[2] * box[3], "iscrowd": 1})
    return rows + crowds


def join(root: Path, sources: list[tuple[str, str]], least: int = 0) -> Data:
    """One data set of several.

    Args:
        sources: annotation file and folder of images, relative to `root`.
        least: objects of one class that make a crowd where a file marks none; 0: none do.

    Raises:
        InputError: a file is no COCO data set, a class has two ids, or a photograph comes twice.
    """
    joined: Data = {"images": [], "annotations": [], "categories": []}
    category_ids: dict[str, Any] = {}
    seen: dict[Any, str] = {}
    for file, folder in sources:
        data = read_json(root / file)
        if not isinstance(data, dict) or any(not isinstance(data.get(k), list) for k in joined):
            raise InputError(f"{root / file}: not a COCO data set")
        for category in data["categories"]:
            name, id_ = category["name"], category["id"]
            if category_ids.setdefault(name, id_) != id_:
                raise InputError(
                    f"{root / file}: class {name!r} has id {id_}, "
                    f"expected {category_ids[name]} as in the files before"
                )
            if category not in joined["categories"]:
                joined["categories"].append(category)
        for image in data["images"]:
            key = id_key(image["id"])
            if key in seen:
                raise InputError(f"{root / file}: image {image['id']} is also in {seen[key]}")
            seen[key] = file
            name = (Path(folder) / image["file_name"]).as_posix()
            joined["images"].append({**image, "file_name": name})
        joined["annotations"] += mark_crowds(data, least) if least else data["annotations"]
    return joined


def split(data: Data, count: int, seed: int) -> tuple[Data, Data]:
    """The data set without, and with only, `count` photographs.

    Raises:
        InputError: there are not more than `count` photographs.
    """
    keys = [id_key(image["id"]) for image in data["images"]]
    if not 0 < count < len(keys):
        raise InputError(f"held-out is {count}, expected 1..{len(keys) - 1}")
    order = sorted(keys, key=lambda key: random.Random(f"{seed}/{key}").random())
    held_out = set(order[:count])
    parts = []
    for wanted in (False, True):
        part = {**data, "images": [], "annotations": []}
        part["images"] = [i for i in data["images"] if (id_key(i["id"]) in held_out) == wanted]
        kept = {id_key(image["id"]) for image in part["images"]}
        rows = [a for a in data["annotations"] if id_key(a["image_id"]) in kept]
        part["annotations"] = [{**row, "id": n} for n, row in enumerate(rows, start=1)]
        parts.append(part)
    return parts[0], parts[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="+", metavar="ANNOTATIONS=IMAGES")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--held-out", type=int, required=True, help="photographs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mark-crowds", type=int, default=0, metavar="OBJECTS", help="see above")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--overwrite", action="store_true")
    arguments = parser.parse_args()
    sources = [source.partition("=")[::2] for source in arguments.sources]
    make_folder(arguments.output)
    paths = [arguments.output / f"{name}.json" for name in ("train", "held_out")]
    for path in paths:
        check_output(path, overwrite=arguments.overwrite)
    joined = join(arguments.root, sources, arguments.mark_crowds)
    parts = split(joined, arguments.held_out, arguments.seed)
    for path, part in zip(paths, parts, strict=True):
        write_atomic(path, json.dumps(part).encode(), overwrite=arguments.overwrite)
        crowds = sum(bool(row.get("iscrowd")) for row in part["annotations"])
        counts = Counter(r["category_id"] for r in part["annotations"] if not r.get("iscrowd"))
        print(
            f"{path}: {len(part['images'])} images, {counts.total()} objects, {crowds} crowds, "
            f"{len(counts)} of {len(part['categories'])} classes"
        )


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
