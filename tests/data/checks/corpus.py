"""Small COCO files, each with one thing wrong with it, and what a check says to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Coco = dict[str, Any]

# What is never repaired, as nobody but the user knows what is right.
NEVER_REPAIRED = {"size_missing", "same_file", "no_object_at_all"}


def coco(boxes: list[list[float]] | None = None, **changes: Any) -> Coco:
    """Return a sound file of two pictures of 100x80; box i is annotation 10 + i of the first."""
    boxes = [[10, 20, 30, 40], [50, 5, 20.5, 30]] if boxes is None else boxes
    images = [
        {"id": 5, "file_name": "a.jpg", "width": 100, "height": 80},
        {"id": 6, "file_name": "b.jpg", "width": 100, "height": 80},
    ]
    annotations = [annotation(10 + row, box) for row, box in enumerate(boxes)]
    annotations.append(annotation(90, [1, 2, 99, 78], image_id=6, category_id=7))
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories, **changes}


def annotation(id_: int, box: list[float], image_id: int = 5, category_id: int = 3) -> Coco:
    return {
        "id": id_,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box,
        "area": box[2] * box[3] / 2 if len(box) == 4 else 0,
        "iscrowd": 0,
    }


def changed(section: str, row: int, **values: Any) -> Coco:
    """Return the sound file with some values of one record; None removes a key."""
    content = coco()
    record = content[section][row]
    record.update(values)
    for key in [key for key, value in record.items() if value is None]:
        del record[key]
    return content


def added(section: str, *records: Any) -> Coco:
    content = coco()
    content[section] += records
    return content


def without(section: str, row: int) -> Coco:
    content = coco()
    del content[section][row]
    return content


def replaced(old: str, new: str, content: Coco | None = None) -> bytes:
    """Return the json with another text in one place."""
    text = json.dumps(coco() if content is None else content)
    assert text.count(old) >= 1, f"{old} is not in the file"
    return text.replace(old, new, 1).encode()


@dataclass(frozen=True)
class Sample:
    """A file and the first line of what is found of `kind` in it, or how that line begins.

    `also` are kinds that come with it; nothing else may be found. `count` is of `kind`.
    `repairable`: a repair leaves none of the kind.
    """

    name: str
    kind: str
    content: Coco | bytes
    line: str
    count: int = 1
    also: tuple[str, ...] = ()
    repairable: bool = True
    num_queries: int | None = 100

    def write(self, path: Path) -> Path:
        data = (
            self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()
        )
        path.write_bytes(data)
        return path


A, B, C = "annotation 10 (image 5 'a.jpg'): ", "image 5 'a.jpg': ", "image 6 'b.jpg': "
UNUSED = ("unused_category",)
# Right for both readings in the left half of the picture, far off in the right one.
CORNERS = [[10, 20, 40, 60], [60, 5, 95, 75], [55, 40, 100, 80]]
CENTRES = [[85, 40, 28, 40], [50, 65, 30, 29], [50, 64, 40, 30], [83, 60, 30, 38], [88, 30, 20, 30]]
FRACTIONS = [[0.1, 0.2, 0.3, 0.4], [0.5, 0.05, 0.25, 0.5]]


def whole(boxes: list[list[float]]) -> Coco:
    """Return a file that holds nothing but `boxes`, of both categories."""
    content = coco(boxes)
    del content["annotations"][-1]
    content["annotations"][-1].update(image_id=6, category_id=7)
    return content


def of_corner_areas(boxes: list[list[float]]) -> Coco:
    """Return the sound file with corners in its first image, and the areas that belong to them."""
    content = coco(boxes)
    for record in content["annotations"][:-1]:
        x0, y0, x1, y1 = record["bbox"]
        record["area"] = (x1 - x0) * (y1 - y0)
    return content


def named(second: str, first: str = "a.jpg") -> Coco:
    content = coco()
    content["images"][0]["file_name"] = first
    content["images"][1]["file_name"] = second
    return content


SAMPLES = [
    # Files, sections and records that are not COCO.
    Sample("empty file", "not_coco", b"", "not a json file: the file is empty", repairable=False),
    Sample("list", "not_coco", b"[]", "not a COCO annotation file: it holds a list, as a file ",
           repairable=False),
    Sample("no section", "not_coco", b'{"images": [], "annotations": []}',
           "not a COCO annotation file: Object missing required field `categories`",
           repairable=False),
    Sample("section is no list", "not_coco", replaced('"images": [', '"images": 1, "x": ['),
           "not a COCO annotation file: Expected `array`, got `int` - at `$.images`",
           repairable=False),
    Sample("cut off", "not_coco", b'{\n"images": [],\n"annotations": [{"id"',
           "not a json file: it ends too early, in line 3; the file is cut off", repairable=False),
    Sample("comma too many", "not_coco", b'{\n"images": [],\n"annotations": [],}',
           "not a json file: ", repairable=False),
    Sample("two files in one", "not_coco", json.dumps(coco()).encode() + b"\n{}",
           "not a json file: trailing characters at line 2", repairable=False),
    Sample("no categories", "not_coco", coco([], annotations=[], categories=[]),
           "categories: the list is empty", also=("no_objects",), repairable=False),
    Sample("no images", "not_coco", coco([], annotations=[], images=[]),
           "images: the list is empty", also=UNUSED, repairable=False),
    Sample("three numbers", "not_coco", changed("annotations", 0, bbox=[1, 2, 3]),
           "annotation 10: bbox must be [x, y, w, h]: Expected `array` of length 4"),
    Sample("box of words", "not_coco", changed("annotations", 0, bbox=["a", "b", "c", "d"]),
           "annotation 10: bbox must be [x, y, w, h]: Expected `float | null`, got `str`"),
    Sample("numbers as text", "not_coco", changed("annotations", 0, bbox=["10", "2", "3", "4.5"]),
           "annotation 10: bbox must be [x, y, w, h]: Expected `float | null`, got `str`"),
    Sample("float too large", "not_coco", replaced("[10, 20", "[1e400, 20"),
           "annotation 10: bbox must be [x, y, w, h]: Number out of range"),
    Sample("id is a word", "not_coco", changed("annotations", 0, id="a-10"),
           "annotations[0]: id: Expected `int | null`, got `str`"),
    Sample("integer too large", "not_coco", replaced('"id": 10', f'"id": {10**20}'),
           "annotations[0]: id: "),
    Sample("no image_id", "not_coco", changed("annotations", 0, image_id=None),
           "annotation 10: Object missing required field `image_id`"),
    Sample("null for an annotation", "not_coco", added("annotations", None),
           "annotations[3]: Expected `object`, got `null`"),
    Sample("image of decimals", "not_coco", changed("images", 0, width=100.0),
           "image 5: width: Expected `int | null`, got `float`", also=UNUSED),
    Sample("image without an id", "not_coco", added("images", {"file_name": "c.jpg"}),
           "images[2]: Object missing required field `id`"),
    Sample("category without a name", "not_coco", changed("categories", 0, name=None),
           "category 3: Object missing required field `name`", also=("no_objects",),
           repairable=False),
    Sample("category id as text", "not_coco", changed("categories", 0, id="3"),
           "categories[0]: id: Expected `int`, got `str`",
           also=("no_objects", "unknown_category")),
    Sample("name is no UTF-8", "not_coco", replaced("a.jpg", "Z").replace(b"Z", b"\xff"),
           "image 5: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
           also=UNUSED),
    # Ids.
    Sample("another image of an id", "duplicate_image_id",
           added("images", {"id": 5, "file_name": "c.jpg", "width": 9, "height": 9}),
           "image 5 'c.jpg': the id is also that of image 5 'a.jpg'"),
    Sample("one image twice", "duplicate_image_id", added("images", coco()["images"][0]),
           "image 5 'a.jpg': the id is also that of image 5 'a.jpg'", also=("same_file",)),
    Sample("another object of an id", "duplicate_annotation_id",
           added("annotations", annotation(10, [1, 1, 5, 5], 6)),
           "annotation 10 (image 6 'b.jpg'): the id is also that of annotation 10 "
           "(image 5 'a.jpg')"),
    Sample("three of an id", "duplicate_annotation_id",
           added("annotations", annotation(11, [1, 1, 5, 5], 6), annotation(11, [2, 1, 5, 5], 6)),
           "annotation 11 (image 6 'b.jpg'): the id is also that of annotation 11 "
           "(image 5 'a.jpg')", count=2),
    Sample("the largest id", "duplicate_annotation_id",
           added("annotations", annotation(2**63 - 1, [1, 1, 5, 5], 6),
                 annotation(2**63 - 1, [2, 1, 5, 5], 6)),
           f"annotation {2**63 - 1} (image 6 'b.jpg'): the id is also that of "
           f"annotation {2**63 - 1} (image 6 'b.jpg')"),
    Sample("one category twice", "duplicate_category",
           added("categories", {"id": 3, "name": "cat"}),
           "category 3 'cat': category 3 'cat' has its id"),
    Sample("two names of an id", "duplicate_category",
           added("categories", {"id": 3, "name": "cow"}),
           "category 3 'cow': category 3 'cat' has its id", repairable=False),
    Sample("two ids of a name", "duplicate_category", changed("categories", 1, name="cat"),
           "category 7 'cat': category 3 'cat' has its name", repairable=False),
    Sample("two ids of a name, one unused", "duplicate_category",
           added("categories", {"id": 4, "name": "cat"}),
           "category 4 'cat': category 3 'cat' has its name", also=UNUSED),
    Sample("no id", "missing_annotation_id", changed("annotations", 0, id=None),
           "annotations[0] (without an id) (image 5 'a.jpg'): results cannot refer to it"),
    Sample("id is null", "missing_annotation_id", replaced('"id": 11', '"id": null'),
           "annotations[1] (without an id) (image 5 'a.jpg'): results cannot refer to it"),
    # References.
    Sample("image not listed", "unknown_image", changed("annotations", 0, image_id=99),
           "annotation 10 (image 99): no image has the id 99"),
    Sample("image of a negative id", "unknown_image", changed("annotations", 0, image_id=-(2**62)),
           f"annotation 10 (image -{2**62}): no image has the id -{2**62}"),
    Sample("category not listed", "unknown_category", changed("annotations", 0, category_id=4),
           A + "no category 4 is listed"),
    Sample("categories from zero", "unknown_category", changed("annotations", 0, category_id=0),
           A + "no category 0 is listed"),
    Sample("categories shifted by one", "unknown_category",
           coco(annotations=[annotation(1, [1, 1, 5, 5])], categories=[{"id": 2, "name": "cat"}]),
           "annotation 1 (image 5 'a.jpg'): no category 3 is listed; id 3 is used, id 2 is listed: "
           "shifted by one?", also=("no_objects", *UNUSED), repairable=False),
    # Boxes.
    Sample("no box", "missing_box", changed("annotations", 0, bbox=None),
           A + "it has no bbox and is no crowd region"),
    Sample("box is null", "missing_box", replaced("[10, 20, 30, 40]", "null"),
           A + "it has no bbox and is no crowd region"),
    Sample("not a number", "not_finite", replaced("[10, 20", "[NaN, 20"),
           A + "bbox [nan, 20.0, 30.0, 40.0] is not finite"),
    Sample("infinite", "not_finite", replaced("[10, 20", "[10, -Infinity"),
           A + "bbox [10.0, nan, 30.0, 40.0] is not finite"),
    Sample("null in a box", "not_finite", replaced("30, 40]", "30, null]"),
           A + "bbox [10.0, 20.0, 30.0, nan] is not finite"),
    Sample("no width", "no_width_or_height", coco([[10, 20, 0, 40], [50, 5, 20, 30]]),
           A + "bbox [10.0, 20.0, 0.0, 40.0] has no width or no height"),
    Sample("negative height", "no_width_or_height",
           changed("annotations", 0, bbox=[10, 20, 30, -4], area=5),
           A + "bbox [10.0, 20.0, 30.0, -4.0] has no width or no height"),
    Sample("right of the image", "outside_image", changed("annotations", 0, bbox=[200, 5, 30, 40]),
           A + "bbox [200, 5, 30, 40] lies outside its image of 100 x 80"),
    Sample("above the image", "outside_image", changed("annotations", 0, bbox=[10, -50, 30, 50]),
           A + "bbox [10, -50, 30, 50] lies outside its image of 100 x 80"),
    Sample("too thin to be told from a line", "outside_image",
           changed("annotations", 0, bbox=[90, 20, 1e-9, 4], area=0),
           A + "bbox [90, 20, 1e-09, 4] lies outside its image of 100 x 80"),
    Sample("over the right border", "overshoot", changed("annotations", 0, bbox=[80, 20, 30.5, 40]),
           A + "bbox [80, 20, 30.5, 40] passes the border of its image: right by 10.5 pixels"),
    Sample("over all borders", "overshoot", changed("annotations", 0, bbox=[-1, -2, 102, 85]),
           A + "bbox [-1, -2, 102, 85] passes the border of its image: left by 1, top by 2, "
           "right by 1, bottom by 3 pixels"),
    Sample("so large that it would overflow", "overshoot",
           changed("annotations", 0, bbox=[-1e300, 0, 1e305, 1e305], area=1),
           A + "bbox [-1e+300, 0, 1e+305, 1e+305] passes the border of its image: "
           "left by 1e+300, right by 9.9999e+304, bottom by 1e+305 pixels; most of it lies outside",
           repairable=False),
    Sample("far over the border", "overshoot", changed("annotations", 0, bbox=[80, 20, 50, 40]),
           A + "bbox [80, 20, 50, 40] passes the border of its image: right by 30 pixels; "
           "most of it lies outside", repairable=False),
    Sample("width and height swapped", "overshoot", coco([[10, 20, 30, 75], [20, 5, 55, 90]]),
           A + "bbox [10, 20, 30, 75] passes the border of its image: bottom by 15 pixels; "
           "it fits with width and height swapped", count=2, repairable=False),
    Sample("all boxes are corners", "looks_like_corners", whole(CORNERS),
           A + "bbox [10, 20, 40, 60] looks like corners x0, y0, x1, y1 in pixels; "
           "as x, y, w, h in pixels it is [10, 20, 30, 40]", count=3),
    Sample("corners with areas of sizes", "looks_like_corners", whole([[60, 50, 99.5, 80]] * 2),
           A + "bbox [60, 50, 99.5, 80] looks like corners x0, y0, x1, y1 in pixels; "
           "as x, y, w, h in pixels it is [60, 50, 39.5, 30]", count=2),
    Sample("all boxes are centres", "looks_like_centres", whole(CENTRES),
           A + "bbox [85, 40, 28, 40] looks like centres cx, cy, w, h in pixels; "
           "as x, y, w, h in pixels it is [71, 20, 28, 40]", count=5),
    Sample("centres at the corner", "looks_like_centres",
           whole([[90, 70, 20, 20 - i] for i in range(6)]),
           A + "bbox [90, 70, 20, 20] looks like centres cx, cy, w, h in pixels; "
           "as x, y, w, h in pixels it is [80, 60, 20, 20]", count=6),
    Sample("all boxes are fractions", "looks_normalised", whole(FRACTIONS),
           A + "bbox [0.1, 0.2, 0.3, 0.4] looks like x, y, w, h as fractions of the image; "
           "as x, y, w, h in pixels it is [10, 16, 30, 32]", count=2),
    Sample("fractions of corners", "looks_normalised",
           whole([[0.1, 0.2, 0.3, 0.4], [0.6, 0.5, 0.9, 1]]),
           A + "bbox [0.1, 0.2, 0.3, 0.4] looks like corners x0, y0, x1, y1 as fractions of the "
           "image; as x, y, w, h in pixels it is [10, 16, 20, 16]", count=2),
    Sample("fractions of centres", "looks_normalised",
           whole([[0.3, 0.2, 0.2, 0.4], [0.9, 0.5, 0.2, 1]]),
           A + "bbox [0.3, 0.2, 0.2, 0.4] looks like centres cx, cy, w, h as fractions of the "
           "image; as x, y, w, h in pixels it is [20, 0, 20, 32]", count=2),
    Sample("fractions of no kind", "looks_normalised",
           whole([[0.8, 0.2, 0.7, 0.1], [0.1, 0.1, 0.5, 0.5]]),
           A + "bbox [0.8, 0.2, 0.7, 0.1] looks like fractions of the image, of corners, centres "
           "or sizes", count=2, repairable=False),
    Sample("an image of fractions", "mixed_formats", coco(FRACTIONS),
           B + "its boxes look like x, y, w, h as fractions of the image, unlike those of "
           "the file; the first is [0.1, 0.2, 0.3, 0.4]", repairable=False),
    Sample("an image of corners", "mixed_formats",
           coco([*CORNERS]) | {"annotations": [*coco([*CORNERS])["annotations"],
                                               annotation(91, [30, 40, 20, 10], 6)]},
           B + "its boxes look like corners x0, y0, x1, y1 in pixels, unlike those of "
           "the file; the first is [10, 20, 40, 60]", repairable=False),
    Sample("an image of corners by its areas", "mixed_formats",
           of_corner_areas([[10, 20, 30, 50], [5, 5, 25, 45]]),
           B + "its boxes look like corners x0, y0, x1, y1 in pixels, unlike those of "
           "the file; the first is [10, 20, 30, 50]"),
    # Areas and crowds.
    Sample("no area", "missing_area", changed("annotations", 0, area=None), A + "it has no area"),
    Sample("area is no number", "missing_area", replaced('"area": 600.0', '"area": Infinity'),
           A + "it has no area"),
    Sample("no iscrowd", "missing_iscrowd", changed("annotations", 0, iscrowd=None),
           A + "it has no iscrowd"),
    Sample("iscrowd is null", "missing_iscrowd", replaced('"iscrowd": 0', '"iscrowd": null'),
           A + "it has no iscrowd"),
    Sample("area larger than the box", "wrong_area", changed("annotations", 0, area=1272),
           A + "area 1272 does not fit bbox [10, 20, 30, 40]"),
    Sample("negative area", "wrong_area", changed("annotations", 0, area=-1),
           A + "area -1 does not fit bbox [10, 20, 30, 40]"),
    Sample("area of zero", "wrong_area", changed("annotations", 0, area=0),
           A + "area 0 does not fit bbox [10, 20, 30, 40]"),
    Sample("area of a crowd", "wrong_area",
           added("annotations", {**annotation(12, [1, 1, 5, 5]), "iscrowd": 1, "area": 99}),
           "annotation 12 (image 5 'a.jpg'): area 99 does not fit bbox [1, 1, 5, 5]"),
    # Objects.
    Sample("one object twice", "duplicate_object",
           added("annotations", annotation(12, [10, 20, 30, 40])),
           "annotation 12 (image 5 'a.jpg'): category 3 'cat' and bbox [10, 20, 30, 40] are those "
           "of annotation 10"),
    Sample("zero and minus zero", "duplicate_object",
           coco([[0, 0, 30, 40], [-0.0, 0, 30, 40], [0, 0, 30, 40]]),
           "annotation 11 (image 5 'a.jpg'): category 3 'cat' and bbox [-0, 0, 30, 40] are those "
           "of annotation 10", count=2),
    Sample("no object", "no_object_at_all", coco([], annotations=[]),
           "annotations: there is no object", also=("no_objects", *UNUSED), repairable=False),
    Sample("crowd regions only", "no_object_at_all",
           coco([], annotations=[{**annotation(1, [1, 1, 5, 5]), "iscrowd": 1}]),
           "annotations: there is no object", also=("no_objects", *UNUSED), repairable=False),
    Sample("image without objects", "no_objects", coco([]), B + "it has no objects", also=UNUSED),
    Sample("image of a crowd only", "no_objects", changed("annotations", 2, iscrowd=1),
           C + "it has no objects", also=UNUSED),
    Sample("unused category", "unused_category", added("categories", {"id": 9, "name": "[b]ox\n"}),
           "category 9 '[b]ox\\n': it has no objects"),
    Sample("category of a crowd only", "unused_category",
           added("annotations", {**annotation(12, [1, 1, 5, 5], 5, 9), "iscrowd": 1})
           | {"categories": [*coco()["categories"], {"id": 9, "name": "x" * 200}]},
           f"category 9 '{'x' * 117}...': it has no objects"),
    Sample("more objects than queries", "too_many_objects", coco(),
           B + "2 objects, the model has 1 queries", num_queries=1),
    Sample("a hundred and one", "too_many_objects", coco([[0, 1, 5, 5 + i / 2] for i in range(101)])
           | {"annotations": [annotation(i, [0, 1, 5, 5 + i / 2]) for i in range(101)]},
           B + "101 objects, the model has 100 queries", also=("no_objects", *UNUSED)),
    # Sizes and names.
    Sample("no size", "size_missing", changed("images", 0, width=None, height=None),
           B + "width and height are missing or 0", repairable=False),
    Sample("size is null", "size_missing", replaced('"width": 100', '"width": null'),
           B + "width is missing or 0", repairable=False),
    Sample("negative height of an image", "size_missing", changed("images", 0, height=-80),
           B + "height is -80, not positive", repairable=False),
    Sample("no name", "name_missing", changed("images", 0, file_name=None),
           "image 5 (no file_name): it has no file_name"),
    Sample("name is empty", "name_missing", changed("images", 0, file_name=""),
           "image 5 (no file_name): it has no file_name"),
    Sample("up", "leaves_folder", changed("images", 0, file_name="c/../../a.jpg"),
           "image 5 'c/../../a.jpg': file_name must lead to a file inside the image folder"),
    Sample("from the root", "leaves_folder", changed("images", 0, file_name="/etc/passwd"),
           "image 5 '/etc/passwd': file_name must lead to a file inside the image folder"),
    Sample("a drive", "leaves_folder", changed("images", 0, file_name="C:a.jpg"),
           "image 5 'C:a.jpg': file_name must lead to a file inside the image folder"),
    Sample("null character", "leaves_folder", changed("images", 0, file_name="a\0.jpg"),
           "image 5 'a\\x00.jpg': file_name must lead to a file inside the image folder"),
    Sample("one file twice", "same_file", named("a.jpg"),
           "image 6 'a.jpg': image 5 'a.jpg' is the same file", repairable=False),
    Sample("one file, written in two ways", "same_file", named("./c//a.jpg", "c/a.jpg"),
           "image 6 './c//a.jpg': image 5 'c/a.jpg' is the same file", repairable=False),
]  # fmt: skip
