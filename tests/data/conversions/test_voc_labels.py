"""Pascal VOC labels: pixels counted from 1, difficult objects, unsafe xml."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detr_kit.data.annotations import load_annotations
from detr_kit.data.conversions.voc import VOC_NAMES, import_voc
from detr_kit.errors import DetrKitError
from tests.data.conversions.label_files import category_names, file_names, picture, written

OBJECT = """<object><name>{name}</name>{more}<bndbox>
  <xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax>
</bndbox></object>"""
SIZE = "<size><width>40</width><height>20</height><depth>3</depth></size>"


def voc_object(name: str = "dog", box: tuple[Any, ...] = (11, 6, 20, 15), more: str = "") -> str:
    return OBJECT.format(name=name, box=box, more=more)


def xml(path: Path, *objects: str, size: str = SIZE, file_name: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    body = f"<filename>{file_name}</filename>{size}{''.join(objects)}"
    path.write_text(f"<annotation>{body}</annotation>", encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures with an xml each, of which b has no object, and lists of both and of b."""
    root = tmp_path / "VOC"
    for name in ("a", "b"):
        picture(root / "JPEGImages" / f"{name}.png")
    xml(root / "Annotations" / "a.xml", voc_object())
    xml(root / "Annotations" / "b.xml")
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "dog_val.txt").write_text("b -1\n\n")
    return root


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.json"


class TestImport:
    def test_pixels_count_from_one_and_the_last_belongs_to_the_box(
        self, folder: Path, out: Path
    ) -> None:
        report = import_voc(folder, out)
        content = written(out)
        assert content["images"] == [
            {"id": 1, "file_name": "a.png", "width": 40, "height": 20},
            {"id": 2, "file_name": "b.png", "width": 40, "height": 20},
        ]
        assert content["annotations"] == [
            {
                "id": 1,
                "image_id": 1,
                "category_id": VOC_NAMES.index("dog") + 1,
                "bbox": [10.0, 5.0, 10.0, 10.0],
                "area": 100.0,
                "iscrowd": 0,
            }
        ]
        assert (report.num_images, report.num_empty, report.num_objects) == (2, 1, 1)

    def test_a_whole_picture_is_a_box_from_one_to_its_size(self, folder: Path, out: Path) -> None:
        xml(folder / "Annotations" / "a.xml", voc_object(box=(1, 1, 40, 20)))
        assert import_voc(folder, out).num_clipped == 0
        assert written(out)["annotations"][0]["bbox"] == [0.0, 0.0, 40.0, 20.0]

    def test_decimals_are_kept_and_what_passes_the_border_is_cut(
        self, folder: Path, out: Path
    ) -> None:
        objects = voc_object(box=("11.5", 6, "20.25", 15)), voc_object(box=(0, 1, 41, 5))
        xml(folder / "Annotations" / "a.xml", *objects)
        assert import_voc(folder, out).num_clipped == 1
        first, second = written(out)["annotations"]
        assert first["bbox"] == [10.5, 5.0, 9.75, 10.0]
        assert second["bbox"] == [0.0, 0.0, 40.0, 5.0]

    def test_difficult_objects_are_crowds_unless_asked_otherwise(
        self, folder: Path, out: Path
    ) -> None:
        more = "<difficult>1</difficult><truncated>0</truncated><occluded>true</occluded>"
        xml(folder / "Annotations" / "a.xml", voc_object(more=more), voc_object())
        for as_crowd in (True, False):
            report = import_voc(folder, out, difficult_as_crowd=as_crowd)
            first, second = written(out)["annotations"]
            assert first["iscrowd"] == report.num_crowd == int(as_crowd)
            assert (first["difficult"], first["truncated"], first["occluded"]) == (1, 0, 1)
            assert second["iscrowd"] == 0
            assert "difficult" not in second
            assert load_annotations(out).num_objects == (1 if as_crowd else 2)

    def test_parts_of_an_object_are_no_objects(self, folder: Path, out: Path) -> None:
        part = voc_object("head", (1, 1, 2, 2)).replace("object>", "part>")
        xml(folder / "Annotations" / "a.xml", voc_object("person", more=part))
        import_voc(folder, out)
        assert [one["bbox"][2] for one in written(out)["annotations"]] == [10.0]

    @pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
    def test_a_missing_size_is_read_from_the_picture(
        self, folder: Path, out: Path, size: str
    ) -> None:
        xml(folder / "Annotations" / "a.xml", size=size)
        picture(folder / "JPEGImages" / "a.png", 7, 9)
        import_voc(folder, out, names=["dog"])
        assert [one["width"] for one in written(out)["images"]] == [7, 40]

    def test_a_split_is_a_list_with_or_without_a_second_column(
        self, folder: Path, out: Path
    ) -> None:
        assert import_voc(folder, out, split="train").num_images == 2
        assert import_voc(folder, out, split="dog_val").num_images == 1
        assert file_names(out)[0] == "b.png"

    def test_file_names_may_hold_spaces(self, folder: Path, out: Path) -> None:
        picture(folder / "JPEGImages" / "my dog 1.png")
        xml(folder / "Annotations" / "my dog 1.xml", voc_object())
        (folder / "ImageSets/Main/train.txt").write_text("my dog 1\n")
        import_voc(folder, out, split="train")
        assert file_names(out)[0] == "my dog 1.png"

    @pytest.mark.parametrize("source", ["", "Annotations"])
    def test_pictures_without_an_xml_are_counted(
        self, folder: Path, out: Path, source: str
    ) -> None:
        picture(folder / "JPEGImages" / "c.png")
        report = import_voc(folder / source, out)
        assert (report.num_images, report.num_unmatched) == (2, 1)

    def test_xml_files_may_stand_beside_pictures(self, tmp_path: Path, out: Path) -> None:
        picture(tmp_path / "flat" / "sub" / "a.jpg")
        xml(tmp_path / "flat" / "sub" / "a.xml", voc_object())
        import_voc(tmp_path / "flat", out)
        assert file_names(out)[0] == "sub/a.jpg"

    def test_the_name_of_the_xml_goes_before_the_name_in_it(self, folder: Path, out: Path) -> None:
        picture(folder / "JPEGImages" / "a.jpg")
        for inside, wanted in (
            ("b.png", "a.jpg"),  # left over from before files were renamed
            ("a.png", "a.png"),
            ("C:\\photos\\a.png", "a.png"),
            ("a", "a.jpg"),
        ):
            xml(folder / "Annotations" / "a.xml", voc_object(), file_name=inside)
            import_voc(folder, out)
            assert file_names(out)[0] == wanted
        xml(folder / "Annotations" / "z.xml", file_name="b.png")
        import_voc(folder, out)
        assert file_names(out)[2] == "b.png"


class TestClasses:
    def test_the_twenty_of_voc_keep_their_order_even_where_some_are_missing(
        self, folder: Path, out: Path
    ) -> None:
        import_voc(folder, out)
        assert category_names(out) == list(VOC_NAMES)
        assert [one["id"] for one in written(out)["categories"]] == list(range(1, 21))

    def test_others_are_sorted_and_the_same_for_every_split(self, folder: Path, out: Path) -> None:
        xml(folder / "Annotations" / "a.xml", voc_object("zebra"), voc_object("dog"))
        import_voc(folder, out, split="dog_val")
        assert category_names(out) == ["dog", "zebra"]

    def test_names_may_be_given_or_stand_in_a_file(self, folder: Path, out: Path) -> None:
        import_voc(folder, out, names=["cat", "dog"])
        assert category_names(out) == ["cat", "dog"]
        (folder / "classes.txt").write_text("dog\nemu\n")
        import_voc(folder, out)
        assert category_names(out) == ["dog", "emu"]

    def test_a_class_that_is_not_among_them_is_named(self, folder: Path, out: Path) -> None:
        with pytest.raises(DetrKitError, match=r"a.xml: no class is called 'dog'; did you mean 'd"):
            import_voc(folder, out, names=["cat", "doge"])
        with pytest.raises(DetrKitError, match=r"no class is called 'dog'; there are cat"):
            import_voc(folder, out, names=["cat"])


class TestRefusals:
    @pytest.mark.parametrize(
        ("objects", "message"),
        [
            (voc_object(""), "object 2: it has no <name>"),
            ("<object><name>a</name></object>", "object 2: it has no <bndbox>"),
            (voc_object(box=("x", 1, 2, 2)), "object 2: <xmin> must be a number, got 'x'"),
            (voc_object(box=(1, 1, 2, "")), "object 2: <ymax> must be a number, got ''"),
            (voc_object(box=(1, "nan", 2, 2)), "object 2: the box .*'ymin': nan.* has no pixel"),
            (voc_object(box=(1, 1, "inf", 2)), "object 2: the box .*'xmax': inf.* has no pixel"),
            (voc_object(box=(5, 1, 4, 2)), "object 2: the box .*'xmin': 5.0.* has no pixel"),
            (voc_object(box=(50, 1, 60, 2)), "object 2: the box lies outside its image"),
        ],
    )
    def test_an_object_that_is_none_is_named(
        self, folder: Path, out: Path, objects: str, message: str
    ) -> None:
        xml(folder / "Annotations" / "a.xml", voc_object(), objects)
        with pytest.raises(DetrKitError, match=rf"a.xml: {message}"):
            import_voc(folder, out)
        assert not out.exists()

    def test_bad_boxes_of_all_files_are_counted_or_left_out(self, folder: Path, out: Path) -> None:
        bad = [voc_object(box=box) for box in ((5, 1, 4, 2), (50, 1, 60, 2), ("nan", 1, 2, 2))]
        xml(folder / "Annotations" / "a.xml", voc_object(), *bad[:2])
        xml(folder / "Annotations" / "b.xml", bad[2])
        message = r"a.xml: object 2: .* \(3 such objects; --on-bad-box skip leaves them out\)$"
        with pytest.raises(DetrKitError, match=message):
            import_voc(folder, out)
        report = import_voc(folder, out, on_bad_box="skip")
        assert (report.num_objects, report.num_skipped, report.num_clipped) == (1, 3, 0)
        assert [one["bbox"] for one in written(out)["annotations"]] == [[10.0, 5.0, 10.0, 10.0]]

    @pytest.mark.parametrize(
        "one", [voc_object(""), voc_object(box=("x", 1, 2, 2)), "<object><name>a</name></object>"]
    )
    def test_an_object_of_another_form_is_never_left_out(
        self, folder: Path, out: Path, one: str
    ) -> None:
        xml(folder / "Annotations" / "a.xml", one)
        with pytest.raises(DetrKitError, match=r"a.xml: object 1: "):
            import_voc(folder, out, names=["dog", "a"], on_bad_box="skip")

    def test_a_box_of_one_pixel_is_a_box(self, folder: Path, out: Path) -> None:
        xml(folder / "Annotations" / "a.xml", voc_object(box=(40, 20, 40, 20)))
        import_voc(folder, out)
        assert written(out)["annotations"][0]["bbox"] == [39.0, 19.0, 1.0, 1.0]

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
    @pytest.mark.parametrize(
        "declaration",
        [
            '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;">]>',
            '<!DOCTYPE a [<!ENTITY y SYSTEM "file:///etc/hostname">]>',
            '<!DOCTYPE a SYSTEM "http://localhost/a.dtd">',
        ],
    )
    def test_a_document_type_is_refused_in_any_encoding(
        self, folder: Path, out: Path, declaration: str, encoding: str
    ) -> None:
        text = f'<?xml version="1.0" encoding="{encoding}"?>{declaration}<annotation>&y;'
        (folder / "Annotations/a.xml").write_bytes(f"{text}</annotation>".encode(encoding))
        with pytest.raises(DetrKitError, match=r"a.xml: a document type \(<!DOCTYPE>\) is not"):
            import_voc(folder, out)

    def test_the_word_in_a_comment_is_none(self, folder: Path, out: Path) -> None:
        xml(folder / "Annotations" / "a.xml", "<!-- <!DOCTYPE x> &y; -->", voc_object())
        assert import_voc(folder, out).num_objects == 1

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "not an xml file"),
            (b"<annotation>", "not an xml file"),
            (b"<annotation>&y;</annotation>", "not an xml file: undefined entity"),
            (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "not an xml file"),
            (None, "cannot read the file"),
            (b"<kml></kml>", "expected an <annotation>, got <kml>"),
        ],
    )
    def test_what_is_no_annotation_is_named(
        self, folder: Path, out: Path, content: bytes | None, message: str
    ) -> None:
        path = folder / "Annotations/a.xml"
        path.unlink()
        path.symlink_to("nowhere") if content is None else path.write_bytes(content)
        with pytest.raises(DetrKitError, match=rf"a.xml: {message}"):
            import_voc(folder, out)

    @pytest.mark.parametrize(
        ("change", "split", "message"),
        [
            (lambda root: None, "test", r"test.txt: no such split; there are dog_val, train"),
            (
                lambda root: (root / "ImageSets/Main/train.txt").write_text("a\nzz\n"),
                "train",
                r"train.txt: zz has no xml file",
            ),
            (
                lambda root: (root / "JPEGImages/a.png").unlink(),
                None,
                r"a.xml: its picture is not in .*: neither a\.\* nor 'gone.jpg'.*\(--images\)",
            ),
            (
                lambda root: [path.unlink() for path in (root / "Annotations").iterdir()],
                None,
                "Annotations: no xml files there",
            ),
            (
                lambda root: xml(root / "Annotations/a.xml"),
                None,
                "no object in any xml file; give names",
            ),
        ],
    )
    def test_what_is_missing_is_named(
        self, folder: Path, out: Path, change: Callable[[Path], Any], split: Any, message: str
    ) -> None:
        xml(folder / "Annotations" / "a.xml", voc_object(), file_name="gone.jpg")
        change(folder)
        with pytest.raises(DetrKitError, match=message):
            import_voc(folder, out, split=split)

    def test_folders_that_do_not_exist_are_named(self, folder: Path, out: Path) -> None:
        with pytest.raises(DetrKitError, match="nowhere: no such folder"):
            import_voc(folder / "nowhere", out)
        with pytest.raises(DetrKitError, match="nowhere: no such folder"):
            import_voc(folder, out, images=folder / "nowhere")
