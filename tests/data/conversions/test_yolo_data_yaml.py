"""The data.yaml of YOLO data sets: where its entries lead, and what it may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from detr_kit.data.conversions.yolo import import_yolo
from detr_kit.errors import DetrKitError
from tests.data.conversions.label_files import NAMES, file_names, picture, text, written


class TestDataYaml:
    def write(self, yolo_folder: Path, **values: Any) -> Path:
        path = yolo_folder / "data.yaml"
        path.write_text(yaml.safe_dump({"names": [*NAMES], **values}))
        return path

    @pytest.mark.parametrize(
        "values",
        [
            {"train": "images"},
            {"train": ["images"]},
            {"train": "images", "val": "images"},
            {"path": "..", "train": "data/images"},
            {"path": "/not/there/any/more", "train": "images"},
            {"train": "../images"},  # as Roboflow writes it, from the yaml's own folder
            {"train": "images", "nc": 2, "names": {0: "circle", 1: "star"}},
            {"train": "list.txt"},
        ],
        ids=str,
    )
    def test_entries_are_found(
        self, yolo_folder: Path, tmp_path: Path, values: dict[str, Any]
    ) -> None:
        text(yolo_folder / "list.txt", "./images/a.png", "", "images/b.png", "images/b.png")
        path = self.write(yolo_folder, **values)
        for source in (path, yolo_folder):
            import_yolo(source, tmp_path / "out.json")
            content = written(tmp_path / "out.json")
            assert file_names(tmp_path / "out.json") == ["a.png", "b.png"]
            assert [one["bbox"] for one in content["annotations"]] == [[15.0, 5.0, 10.0, 10.0]]
            assert [one["name"] for one in content["categories"]] == [*NAMES]

    def test_several_folders_start_from_the_one_that_holds_them(
        self, yolo_folder: Path, tmp_path: Path
    ) -> None:
        picture(yolo_folder / "more" / "images" / "c.png")
        text(yolo_folder / "more" / "labels" / "c.txt", "0 0.5 0.5 0.5 0.5")
        path = self.write(yolo_folder, train=["images", "more/images"])
        report = import_yolo(path, tmp_path / "out.json")
        names = ["images/a.png", "images/b.png", "more/images/c.png"]
        assert file_names(tmp_path / "out.json") == names
        assert report.images == yolo_folder.absolute()
        assert report.num_objects == 2

    def test_names_that_are_given_go_first(self, yolo_folder: Path, tmp_path: Path) -> None:
        import_yolo(
            self.write(yolo_folder, train="images"), tmp_path / "out.json", names=["x", "y"]
        )
        assert written(tmp_path / "out.json")["categories"][0]["name"] == "x"

    @pytest.mark.parametrize(
        ("values", "split", "message"),
        [
            (
                {"train": "images", "val": "empty"},
                None,
                r"the splits train, val; choose one as the split \(--split\)",
            ),
            ({}, None, "no train, val or test"),
            ({"train": "images"}, "test", "no split 'test'; it has train"),
            ({"train": "nowhere"}, None, r"'nowhere' is not there; looked for.*\(--images\)"),
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
        self, yolo_folder: Path, tmp_path: Path, values: Any, split: str | None, message: str
    ) -> None:
        text(yolo_folder / "gone.txt", "gone.png")
        (yolo_folder / "empty").mkdir()
        with pytest.raises(DetrKitError, match=message):
            import_yolo(self.write(yolo_folder, **values), tmp_path / "out.json", split=split)

    def test_pictures_outside_the_folder_that_was_given_are_named(
        self, yolo_folder: Path, tmp_path: Path
    ) -> None:
        path = self.write(yolo_folder, train="images")
        with pytest.raises(DetrKitError, match=r"a.png: the picture is not in the folder"):
            import_yolo(path, tmp_path / "out.json", images=yolo_folder / "labels")

    @pytest.mark.parametrize(
        ("text", "message"), [("[1, 2]", "expected keys such as"), ("{a: [", "cannot read it")]
    )
    def test_a_yaml_of_another_form_is_named(
        self, yolo_folder: Path, tmp_path: Path, text: str, message: str
    ) -> None:
        (yolo_folder / "data.yaml").write_text(text)
        with pytest.raises(DetrKitError, match=rf"data.yaml: {message}"):
            import_yolo(yolo_folder, tmp_path / "out.json")
