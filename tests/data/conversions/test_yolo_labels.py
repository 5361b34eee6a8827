"""YOLO labels in every layout and with every kind of line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detr_kit.data.annotations import load_annotations
from detr_kit.data.conversions.formats import detect_format
from detr_kit.data.conversions.yolo import import_yolo
from detr_kit.errors import DetrKitError
from detr_kit.images import read_image
from tests.data.conversions.label_files import NAMES, file_names, picture, text, written


class TestLines:
    def test_a_box_is_in_pixels_of_the_picture(self, yolo_folder: Path, tmp_path: Path) -> None:
        report = import_yolo(yolo_folder, tmp_path / "out.json")
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
            f"the picture folder is {yolo_folder / 'images'}"
        )

    def test_a_polygon_gives_its_box_its_area_and_a_segmentation(
        self, yolo_folder: Path, tmp_path: Path
    ) -> None:
        text(yolo_folder / "labels" / "a.txt", "0 0.1 0.1 0.6 0.1 0.1 0.5")
        import_yolo(yolo_folder, tmp_path / "out.json")
        (one,) = written(tmp_path / "out.json")["annotations"]
        assert one["bbox"] == [4.0, 2.0, 20.0, 8.0]
        assert one["area"] == 80.0
        assert one["segmentation"] == [[4.0, 2.0, 24.0, 2.0, 4.0, 10.0]]

    def test_whole_classes_may_have_decimals_and_empty_lines_are_nothing(
        self, yolo_folder: Path, tmp_path: Path
    ) -> None:
        text(yolo_folder / "labels" / "a.txt", "", "1.000000 0.5 0.5 0.25 0.5", "  ")
        import_yolo(yolo_folder, tmp_path / "out.json")
        assert [one["category_id"] for one in written(tmp_path / "out.json")["annotations"]] == [1]

    def test_a_box_over_the_border_is_cut_and_counted(
        self, yolo_folder: Path, tmp_path: Path
    ) -> None:
        text(yolo_folder / "labels" / "a.txt", "1 0 0.5 0.5 0.5", "1 0.0624999 0.5 0.125001 0.5")
        report = import_yolo(yolo_folder, tmp_path / "out.json")
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
            pytest.param(
                f"1 {'x' * 10_000} 0.5 0.1 0.9",
                r"could not convert string to float: \.\.\.$",
                id="a very long word",
            ),
        ],
    )
    def test_a_line_that_is_no_label_is_named(
        self, yolo_folder: Path, tmp_path: Path, line: str, message: str
    ) -> None:
        text(yolo_folder / "labels" / "a.txt", "1 0.5 0.5 0.25 0.5", line)
        with pytest.raises(DetrKitError, match=rf"labels/a.txt, line 2: .*{message}"):
            import_yolo(yolo_folder, tmp_path / "out.json")
        assert not (tmp_path / "out.json").exists()

    def test_bad_boxes_of_all_files_are_counted_or_left_out(
        self, yolo_folder: Path, tmp_path: Path
    ) -> None:
        text(yolo_folder / "labels" / "a.txt", "1 0.5 0.5 0.25 0.5", "1 0.5 0.5 0 0.5", "0 9 9 1 1")
        text(yolo_folder / "labels" / "b.txt", "0 inf 0.5 0.25 0.5")
        message = (
            r"a.txt, line 2: the object has no width or no height inside the picture "
            r"\(3 such lines; --on-bad-box skip leaves them out\)$"
        )
        with pytest.raises(DetrKitError, match=message):
            import_yolo(yolo_folder, tmp_path / "out.json")
        report = import_yolo(yolo_folder, tmp_path / "out.json", on_bad_box="skip")
        assert (report.num_objects, report.num_skipped, report.num_empty) == (1, 3, 1)
        assert ", 3 bad boxes left out" in str(report)
        assert len(written(tmp_path / "out.json")["annotations"]) == 1

    @pytest.mark.parametrize("line", ["1 0.5 0.5 0 0.5 0.9", "2 0.5 0.5 0 0.5", "1 0.5 0.5 0 x"])
    def test_a_line_that_is_no_label_is_never_left_out(
        self, yolo_folder: Path, tmp_path: Path, line: str
    ) -> None:
        text(yolo_folder / "labels" / "a.txt", "1 0.5 0.5 0 0.5", line)
        with pytest.raises(DetrKitError, match=r"a.txt, line 2: "):
            import_yolo(yolo_folder, tmp_path / "out.json", on_bad_box="skip")

    def test_a_label_file_that_is_no_text_is_named(self, yolo_folder: Path, tmp_path: Path) -> None:
        (yolo_folder / "labels" / "a.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DetrKitError, match=r"a.txt: cannot read the file"):
            import_yolo(yolo_folder, tmp_path / "out.json")


class TestPictures:
    @pytest.mark.parametrize("orientation", [1, 3, 6, 8])
    def test_sizes_are_those_of_upright_pictures(
        self, yolo_folder: Path, tmp_path: Path, orientation: int
    ) -> None:
        path = picture(yolo_folder / "images" / "c.jpg", 30, 12, orientation)
        import_yolo(yolo_folder, tmp_path / "out.json")
        size_hw = load_annotations(tmp_path / "out.json").size_hw(2)
        assert size_hw == ((30, 12) if orientation in (6, 8) else (12, 30))
        assert read_image(path, expected_size_hw=size_hw).shape[:2] == size_hw

    def test_a_file_that_is_no_picture_is_named(self, yolo_folder: Path, tmp_path: Path) -> None:
        (yolo_folder / "images" / "c.jpg").write_bytes(b"no picture")
        with pytest.raises(DetrKitError, match=r"c.jpg: cannot read the image: not a picture"):
            import_yolo(yolo_folder, tmp_path / "out.json")

    def test_a_picture_far_too_large_is_named(
        self, yolo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(DetrKitError, match=r"a.png: image too large"):
            import_yolo(yolo_folder, tmp_path / "out.json")

    @pytest.mark.parametrize("exif", [b"no metadata", b"II*\0"])
    def test_damaged_metadata_say_nothing(
        self, yolo_folder: Path, tmp_path: Path, exif: bytes
    ) -> None:
        Image.new("L", (30, 12)).save(yolo_folder / "images" / "c.png", exif=exif)
        import_yolo(yolo_folder, tmp_path / "out.json")
        assert load_annotations(tmp_path / "out.json").size_hw(2) == (12, 30)

    def test_a_link_to_nothing_is_named(self, yolo_folder: Path, tmp_path: Path) -> None:
        (yolo_folder / "images" / "c.jpg").symlink_to("nowhere.jpg")
        with pytest.raises(DetrKitError, match=r"c.jpg: no such image file"):
            import_yolo(yolo_folder, tmp_path / "out.json")

    def test_hidden_files_and_other_kinds_are_left_alone(
        self, yolo_folder: Path, tmp_path: Path
    ) -> None:
        for name in ("._a.png", "notes.md", "a.json"):
            (yolo_folder / "images" / name).write_bytes(b"")
        import_yolo(yolo_folder, tmp_path / "out.json")
        assert file_names(tmp_path / "out.json") == ["a.png", "b.png"]

    def test_links_to_folders_are_followed_unless_they_lead_back(
        self, yolo_folder: Path, tmp_path: Path
    ) -> None:
        picture(tmp_path / "elsewhere" / "c.png")
        for name, target in (("c", tmp_path / "elsewhere"), ("d", yolo_folder), ("e", Path())):
            (yolo_folder / "images" / name).symlink_to(target, target_is_directory=True)
        (tmp_path / "elsewhere" / "f").symlink_to(yolo_folder / "images", target_is_directory=True)
        import_yolo(yolo_folder, tmp_path / "out.json")
        assert file_names(tmp_path / "out.json") == ["a.png", "b.png", "c/c.png"]


class TestFolders:
    @pytest.mark.parametrize("source", ["", "images", "labels"])
    def test_any_of_the_parallel_folders_may_be_named(
        self, yolo_folder: Path, tmp_path: Path, source: str
    ) -> None:
        report = import_yolo(yolo_folder / source, tmp_path / "out.json")
        assert report.num_objects == 1
        assert file_names(tmp_path / "out.json") == ["a.png", "b.png"]

    def test_the_working_folder_may_be_named(
        self, yolo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(yolo_folder / "images")
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

    def test_names_come_from_a_list_or_any_file(self, yolo_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "names.yaml").write_text("names: {0: one, 1: two, 5: six}")
        for names, wanted in (
            (["x", "y"], {0: "x", 1: "y"}),
            ({1: "y"}, {1: "y"}),
            (tmp_path / "names.yaml", {0: "one", 1: "two", 5: "six"}),
            (str(yolo_folder / "classes.txt"), {0: "circle", 1: "star"}),
        ):
            import_yolo(yolo_folder, tmp_path / "out.json", names=names)
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
        self, yolo_folder: Path, tmp_path: Path, change: Callable[[Path], Any], message: str
    ) -> None:
        change(yolo_folder)
        with pytest.raises(DetrKitError, match=message):
            import_yolo(yolo_folder, tmp_path / "out.json")

    def test_sources_and_outs_that_do_not_fit_are_refused(
        self, yolo_folder: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out.json"
        with pytest.raises(DetrKitError, match="nowhere: no such file or folder"):
            import_yolo(tmp_path / "nowhere", out)
        with pytest.raises(DetrKitError, match=r"classes.txt: expected a folder of labels or a da"):
            import_yolo(yolo_folder / "classes.txt", out)
        with pytest.raises(DetrKitError, match="split 'x': name the split's own folders"):
            import_yolo(yolo_folder, out, images=yolo_folder / "images", split="x")
        with pytest.raises(DetrKitError, match="nowhere: no such folder"):
            import_yolo(yolo_folder, out, images=tmp_path / "nowhere")
        with pytest.raises(DetrKitError, match=r"data: it is a folder; name a .json file"):
            import_yolo(yolo_folder, yolo_folder)
        with pytest.raises(DetrKitError, match=r"classes.txt: it is an input"):
            import_yolo(yolo_folder, yolo_folder / "classes.txt", names=yolo_folder / "classes.txt")
        with pytest.raises(DetrKitError, match=r"a.txt: it is there and no .json"):
            import_yolo(yolo_folder, yolo_folder / "labels" / "a.txt")


class TestFormats:
    def test_the_format_is_told_from_the_folder(self, yolo_folder: Path, tmp_path: Path) -> None:
        assert detect_format(yolo_folder) == "yolo"
        assert detect_format(yolo_folder / "labels") == "yolo"
        assert detect_format("data.yaml") == "yolo"
        (tmp_path / "voc" / "Annotations").mkdir(parents=True)
        assert detect_format(tmp_path / "voc") == "voc"
        text(tmp_path / "xmls" / "a.xml")
        assert detect_format(tmp_path / "xmls") == "voc"
        text(tmp_path / "xmls" / "a.txt")
        with pytest.raises(
            DetrKitError, match=r"both .txt and .xml files; say the format \(--format\)"
        ):
            detect_format(tmp_path / "xmls")
        (tmp_path / "empty").mkdir()
        with pytest.raises(DetrKitError, match=r"neither .txt nor .xml"):
            detect_format(tmp_path / "empty")
        with pytest.raises(DetrKitError, match="expected a folder of labels"):
            detect_format(tmp_path / "xmls" / "a.xml")
        with pytest.raises(DetrKitError, match="nowhere: no such folder"):
            detect_format(tmp_path / "nowhere")
