"""YOLO labels in every layout and with every kind of line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from detr_kit.data.annotations import load_annotations
from detr_kit.data.conversions.formats import detect_format
from detr_kit.data.conversions.yolo import import_yolo
from detr_kit.errors import DetrKitError
from detr_kit.images import read_image
from tests.data.conversions.label_files import file_names, picture, text, written

NAMES = ("circle", "star")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, one with an object, in `images/` and `labels/`, with a classes.txt."""
    root = tmp_path / "data"
    picture(root / "images" / "a.png")
    picture(root / "images" / "b.png")
    text(root / "labels" / "a.txt", "1 0.5 0.5 0.25 0.5")
    text(root / "classes.txt", *NAMES)
    return root


class TestLines:
    def test_a_box_is_in_pixels_of_the_picture(self, folder: Path, tmp_path: Path) -> None:
        report = import_yolo(folder, tmp_path / "out.json")
        assert written(tmp_path / "out.json") == {
            "images": [
                {"id": 1, "file_name": "a.png", "width": 40, "height": 20},
                {"id": 2, "file_name": "b.png", "width": 40, "height": 20},
            ],
            "annotations": [
                {
                    "id": 1,
                    "image_id": 1,
                    "category_id": 1,
                    "bbox": [15.0, 5.0, 10.0, 10.0],
                    "area": 100.0,
                    "iscrowd": 0,
                }
            ],
            "categories": [{"id": 0, "name": "circle"}, {"id": 1, "name": "star"}],
        }
        assert (report.num_images, report.num_empty, report.num_objects) == (2, 1, 1)
        assert str(report) == (
            f"{tmp_path / 'out.json'}: 2 pictures (1 without objects), 1 objects of 2 classes; "
            f"the picture folder is {folder / 'images'}"
        )

    def test_a_polygon_gives_its_box_its_area_and_a_segmentation(
        self, folder: Path, tmp_path: Path
    ) -> None:
        text(folder / "labels" / "a.txt", "0 0.1 0.1 0.6 0.1 0.1 0.5")
        import_yolo(folder, tmp_path / "out.json")
        (one,) = written(tmp_path / "out.json")["annotations"]
        assert one["bbox"] == [4.0, 2.0, 20.0, 8.0]
        assert one["area"] == 80.0
        assert one["segmentation"] == [[4.0, 2.0, 24.0, 2.0, 4.0, 10.0]]

    def test_whole_classes_may_have_decimals_and_empty_lines_are_nothing(
        self, folder: Path, tmp_path: Path
    ) -> None:
        text(folder / "labels" / "a.txt", "", "1.000000 0.5 0.5 0.25 0.5", "  ")
        import_yolo(folder, tmp_path / "out.json")
        assert [one["category_id"] for one in written(tmp_path / "out.json")["annotations"]] == [1]

    def test_a_box_over_the_border_is_cut_and_counted(self, folder: Path, tmp_path: Path) -> None:
        text(folder / "labels" / "a.txt", "1 0 0.5 0.5 0.5", "1 0.0624999 0.5 0.125001 0.5")
        report = import_yolo(folder, tmp_path / "out.json")
        first, second = written(tmp_path / "out.json")["annotations"]
        assert first["bbox"] == [0.0, 5.0, 10.0, 10.0]
        assert second["bbox"] == [0.0, 5.0, 5.0, 10.0]
        assert report.num_clipped == 1  # the second is off by rounding alone
        assert load_annotations(tmp_path / "out.json").num_clipped == 0

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("1 0.5 0.5 0.25 0.5 0.9", "6 values.*score of a prediction"),
            ("1 0.5 0.5 0.25", "4 values; expected class cx cy w h"),
            ("1 0.1 0.1 0.5 0.5 0.1 0.9 0.2", "8 values; expected"),
            ("star 0.5 0.5 0.25 0.5", "could not convert string to float: 'star'"),
            ("1 0.5 0.5 0.25 x", "could not convert string to float: 'x'"),
            ("1 nan 0.5 0.25 0.5", "a number is not finite"),
            ("1 20 10 10 10", "20 is no fraction of the picture's side"),
            ("1 0.5 -0.2 0.1 0.5", "-0.2 is no fraction"),
            ("2 0.5 0.5 0.25 0.5", "class 2, but the 2 names have the indices 0 to 1"),
            ("-1 0.5 0.5 0.25 0.5", "class -1, but"),
            ("0.5 0.5 0.5 0.25 0.5", "class 0.5, but"),
            ("1 0.5 0.5 0 0.5", "the object has no width or no height"),
            ("1 0.1 0.1 0.5 0.1 0.9 0.1", "the object has no width or no height"),
        ],
    )
    def test_a_line_that_is_no_label_is_named(
        self, folder: Path, tmp_path: Path, line: str, message: str
    ) -> None:
        text(folder / "labels" / "a.txt", "1 0.5 0.5 0.25 0.5", line)
        with pytest.raises(DetrKitError, match=rf"labels/a.txt, line 2: .*{message}"):
            import_yolo(folder, tmp_path / "out.json")
        assert not (tmp_path / "out.json").exists()

    def test_a_label_file_that_is_no_text_is_named(self, folder: Path, tmp_path: Path) -> None:
        (folder / "labels" / "a.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DetrKitError, match=r"a.txt: cannot read the file"):
            import_yolo(folder, tmp_path / "out.json")


class TestPictures:
    @pytest.mark.parametrize("orientation", [1, 3, 6, 8])
    def test_sizes_are_those_of_upright_pictures(
        self, folder: Path, tmp_path: Path, orientation: int
    ) -> None:
        path = picture(folder / "images" / "c.jpg", 30, 12, orientation)
        import_yolo(folder, tmp_path / "out.json")
        size_hw = load_annotations(tmp_path / "out.json").size_hw(2)
        assert size_hw == ((30, 12) if orientation in (6, 8) else (12, 30))
        assert read_image(path, expected_size_hw=size_hw).shape[:2] == size_hw

    def test_a_file_that_is_no_picture_is_named(self, folder: Path, tmp_path: Path) -> None:
        (folder / "images" / "c.jpg").write_bytes(b"no picture")
        with pytest.raises(DetrKitError, match=r"c.jpg: cannot read the image: not a picture"):
            import_yolo(folder, tmp_path / "out.json")

    def test_a_picture_far_too_large_is_named(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(DetrKitError, match=r"a.png: image too large"):
            import_yolo(folder, tmp_path / "out.json")

    @pytest.mark.parametrize("exif", [b"no metadata", b"II*\0"])
    def test_damaged_metadata_say_nothing(self, folder: Path, tmp_path: Path, exif: bytes) -> None:
        Image.new("L", (30, 12)).save(folder / "images" / "c.png", exif=exif)
        import_yolo(folder, tmp_path / "out.json")
        assert load_annotations(tmp_path / "out.json").size_hw(2) == (12, 30)

    def test_a_link_to_nothing_is_named(self, folder: Path, tmp_path: Path) -> None:
        (folder / "images" / "c.jpg").symlink_to("nowhere.jpg")
        with pytest.raises(DetrKitError, match=r"c.jpg: no such image file"):
            import_yolo(folder, tmp_path / "out.json")

    def test_hidden_files_and_other_kinds_are_left_alone(
        self, folder: Path, tmp_path: Path
    ) -> None:
        for name in ("._a.png", "notes.md", "a.json"):
            (folder / "images" / name).write_bytes(b"")
        import_yolo(folder, tmp_path / "out.json")
        assert file_names(tmp_path / "out.json") == ["a.png", "b.png"]


class TestFolders:
    @pytest.mark.parametrize("source", ["", "images", "labels"])
    def test_any_of_the_parallel_folders_may_be_named(
        self, folder: Path, tmp_path: Path, source: str
    ) -> None:
        report = import_yolo(folder / source, tmp_path / "out.json")
        assert report.num_objects == 1
        assert file_names(tmp_path / "out.json") == ["a.png", "b.png"]

    def test_the_working_folder_may_be_named(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(folder / "images")
        report = import_yolo(".", tmp_path / "out.json", names=NAMES)
        assert (report.num_objects, report.num_unmatched) == (1, 0)

    def test_labels_stand_beside_pictures(self, tmp_path: Path) -> None:
        picture(tmp_path / "obj" / "sub" / "a.JPG")
        text(tmp_path / "obj" / "sub" / "a.txt", "0 0.5 0.5 0.5 0.5")
        text(tmp_path / "obj.names", *NAMES)
        report = import_yolo(tmp_path / "obj", tmp_path / "out.json")
        assert (report.num_objects, report.num_unmatched) == (1, 0)
        assert file_names(tmp_path / "out.json") == ["sub/a.JPG"]

    def test_pictures_and_labels_may_be_anywhere(self, tmp_path: Path) -> None:
        picture(tmp_path / "p" / "sub" / "a.png")
        text(tmp_path / "l" / "sub" / "a.txt", "0 0.5 0.5 0.5 0.5")
        text(tmp_path / "l" / "without.txt", "0 0.5 0.5 0.5 0.5")
        report = import_yolo(
            tmp_path / "l", tmp_path / "out.json", images=tmp_path / "p", names=NAMES
        )
        assert (report.num_images, report.num_objects, report.num_unmatched) == (1, 1, 1)
        assert "1 files without a partner left out" in str(report)

    @pytest.mark.parametrize("layout", ["{kind}/{split}", "{split}/{kind}"])
    def test_a_split_is_a_folder_of_either_order(self, tmp_path: Path, layout: str) -> None:
        for split in ("train", "val"):
            images = layout.format(kind="images", split=split)
            labels = layout.format(kind="labels", split=split)
            picture(tmp_path / images / f"{split}.png")
            text(tmp_path / labels / f"{split}.txt", "0 0.5 0.5 0.5 0.5")
        report = import_yolo(tmp_path, tmp_path / "out.json", names=NAMES, split="val")
        assert (report.num_images, report.num_objects) == (1, 1)
        assert file_names(tmp_path / "out.json") == ["val.png"]

    def test_names_come_from_a_list_or_any_file(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "names.yaml").write_text("names: {0: one, 1: two, 5: six}")
        for names, wanted in (
            (["x", "y"], {0: "x", 1: "y"}),
            ({1: "y"}, {1: "y"}),
            (tmp_path / "names.yaml", {0: "one", 1: "two", 5: "six"}),
            (str(folder / "classes.txt"), {0: "circle", 1: "star"}),
        ):
            import_yolo(folder, tmp_path / "out.json", names=names)
            found = written(tmp_path / "out.json")["categories"]
            assert {one["id"]: one["name"] for one in found} == wanted

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda root: (root / "classes.txt").unlink(), "names of the classes are missing"),
            (lambda root: text(root / "classes.txt", "a", "a"), "class 1, 'a', is .* named twice"),
            (lambda root: text(root / "classes.txt", "a", "", "b"), "class 1 must have a name"),
            (lambda root: (root / "classes.txt").write_text("\n"), "no class has a name"),
            (lambda root: (root / "labels/a.txt").unlink(), "none of the 2 pictures has a file"),
            (
                lambda root: [path.unlink() for path in (root / "images").iterdir()],
                "no pictures in .*images.*; name their folder",
            ),
        ],
    )
    def test_what_is_missing_is_named(
        self, folder: Path, tmp_path: Path, change: Callable[[Path], Any], message: str
    ) -> None:
        change(folder)
        with pytest.raises(DetrKitError, match=message):
            import_yolo(folder, tmp_path / "out.json")

    def test_sources_and_outs_that_do_not_fit_are_refused(
        self, folder: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out.json"
        with pytest.raises(DetrKitError, match="nowhere: no such file or folder"):
            import_yolo(tmp_path / "nowhere", out)
        with pytest.raises(DetrKitError, match=r"classes.txt: expected a folder of labels or a da"):
            import_yolo(folder / "classes.txt", out)
        with pytest.raises(DetrKitError, match="split 'x': name the split's own folders"):
            import_yolo(folder, out, images=folder / "images", split="x")
        with pytest.raises(DetrKitError, match="nowhere: no such folder"):
            import_yolo(folder, out, images=tmp_path / "nowhere")
        with pytest.raises(DetrKitError, match=r"data: it is a folder; name a .json file"):
            import_yolo(folder, folder)
        with pytest.raises(DetrKitError, match=r"classes.txt: it is an input"):
            import_yolo(folder, folder / "classes.txt", names=folder / "classes.txt")
        with pytest.raises(DetrKitError, match=r"a.txt: it is there and no .json"):
            import_yolo(folder, folder / "labels" / "a.txt")


class TestDataYaml:
    def write(self, folder: Path, **values: Any) -> Path:
        path = folder / "data.yaml"
        path.write_text(yaml.safe_dump({"names": [*NAMES], **values}))
        return path

    @pytest.mark.parametrize(
        "values",
        [
            {"train": "images"},
            {"train": ["images"]},
            {"path": "..", "train": "data/images"},
            {"path": "/not/there/any/more", "train": "images"},
            {"train": "../images"},  # as Roboflow writes it, from the yaml's own folder
            {"train": "images", "nc": 2, "names": {0: "circle", 1: "star"}},
            {"train": "list.txt"},
        ],
        ids=str,
    )
    def test_entries_are_found(self, folder: Path, tmp_path: Path, values: dict[str, Any]) -> None:
        text(folder / "list.txt", "./images/a.png", "", "images/b.png", "images/b.png")
        path = self.write(folder, **values)
        for source in (path, folder):
            import_yolo(source, tmp_path / "out.json")
            content = written(tmp_path / "out.json")
            assert file_names(tmp_path / "out.json") == ["a.png", "b.png"]
            assert [one["bbox"] for one in content["annotations"]] == [[15.0, 5.0, 10.0, 10.0]]
            assert [one["name"] for one in content["categories"]] == [*NAMES]

    def test_several_folders_start_from_the_one_that_holds_them(
        self, folder: Path, tmp_path: Path
    ) -> None:
        picture(folder / "more" / "images" / "c.png")
        text(folder / "more" / "labels" / "c.txt", "0 0.5 0.5 0.5 0.5")
        path = self.write(folder, train=["images", "more/images"])
        report = import_yolo(path, tmp_path / "out.json")
        names = ["images/a.png", "images/b.png", "more/images/c.png"]
        assert file_names(tmp_path / "out.json") == names
        assert report.images == folder.absolute()
        assert report.num_objects == 2

    def test_names_that_are_given_go_first(self, folder: Path, tmp_path: Path) -> None:
        import_yolo(self.write(folder, train="images"), tmp_path / "out.json", names=["x", "y"])
        assert written(tmp_path / "out.json")["categories"][0]["name"] == "x"

    @pytest.mark.parametrize(
        ("values", "split", "message"),
        [
            ({"train": "images", "val": "images"}, None, "the splits train, val; choose one"),
            ({}, None, "no train, val or test"),
            ({"train": "images"}, "test", "no split 'test'; it has train"),
            ({"train": "nowhere"}, None, "'nowhere' is not there; looked for"),
            ({"train": "images", "nc": 3}, None, "nc is 3, but there are 2 names"),
            ({"train": "images", "kpt_shape": [17, 3]}, None, "key points"),
            ({"train": "images", "names": "a"}, None, "names must list the classes"),
            ({"train": "images", "names": {"a": "b"}}, None, "class indices as keys"),
            ({"train": "images", "names": {-1: "b"}}, None, "class -1, 'b', is negative"),
            ({"train": "images", "names": ["a", True]}, None, "class 1 must have a name in quotes"),
            ({"train": "images/b.jpg"}, None, r"b.jpg' is not there"),
            ({"train": "empty"}, None, r"data.yaml: no pictures found"),
            ({"train": ["images/b.png"]}, None, "none of the 1 pictures has a file of labels"),
            ({"train": "gone.txt"}, None, r"gone.txt, line 1: no such image file: gone.png"),
        ],
        ids=str,
    )
    def test_what_does_not_fit_is_named(
        self, folder: Path, tmp_path: Path, values: Any, split: str | None, message: str
    ) -> None:
        text(folder / "gone.txt", "gone.png")
        (folder / "empty").mkdir()
        with pytest.raises(DetrKitError, match=message):
            import_yolo(self.write(folder, **values), tmp_path / "out.json", split=split)

    def test_pictures_outside_the_folder_that_was_given_are_named(
        self, folder: Path, tmp_path: Path
    ) -> None:
        path = self.write(folder, train="images")
        with pytest.raises(DetrKitError, match=r"a.png: the picture is not in the folder"):
            import_yolo(path, tmp_path / "out.json", images=folder / "labels")

    @pytest.mark.parametrize(
        ("text", "message"), [("[1, 2]", "expected keys such as"), ("{a: [", "cannot read it")]
    )
    def test_a_yaml_of_another_form_is_named(
        self, folder: Path, tmp_path: Path, text: str, message: str
    ) -> None:
        (folder / "data.yaml").write_text(text)
        with pytest.raises(DetrKitError, match=rf"data.yaml: {message}"):
            import_yolo(folder, tmp_path / "out.json")


class TestFormats:
    def test_the_format_is_told_from_the_folder(self, folder: Path, tmp_path: Path) -> None:
        assert detect_format(folder) == "yolo"
        assert detect_format(folder / "labels") == "yolo"
        assert detect_format("data.yaml") == "yolo"
        (tmp_path / "voc" / "Annotations").mkdir(parents=True)
        assert detect_format(tmp_path / "voc") == "voc"
        text(tmp_path / "xmls" / "a.xml")
        assert detect_format(tmp_path / "xmls") == "voc"
        text(tmp_path / "xmls" / "a.txt")
        with pytest.raises(DetrKitError, match=r"both .txt and .xml files; say which"):
            detect_format(tmp_path / "xmls")
        (tmp_path / "empty").mkdir()
        with pytest.raises(DetrKitError, match=r"neither .txt nor .xml"):
            detect_format(tmp_path / "empty")
        with pytest.raises(DetrKitError, match="expected a folder of labels"):
            detect_format(tmp_path / "nowhere")
