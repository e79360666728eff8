from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from inferaligner.errors import InputError
from inferaligner.prompts.images import (
    LARGEST_PICTURE,
    ImagePrompt,
    Picture,
    key_of,
    picture_from,
    pictures_of,
    prompt_fields,
    text_of,
    with_text,
)
from inferaligner.prompts.prompt_files import read_prompts


def image(colour: Any = (200, 30, 30), size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, colour)


def file_bytes(picture: Image.Image, kind: str = "PNG") -> bytes:
    written_to = io.BytesIO()
    picture.save(written_to, format=kind)
    return written_to.getvalue()


def test_every_way_gives_the_same_picture(tmp_path: Path) -> None:
    data = file_bytes(image())
    (tmp_path / "a.png").write_bytes(data)
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    found = {
        picture_from(data),
        picture_from(url),
        picture_from(tmp_path / "a.png"),
        picture_from("a.png", folder=tmp_path),
        picture_from(image()),
    }
    assert len(found) == 1
    (picture,) = found
    assert picture.pixels().size == (6, 4) and picture.pixels().getpixel((0, 0)) == (200, 30, 30)


def test_transparent_pictures_stand_on_white() -> None:
    pixels = picture_from(image((0, 0, 0, 0), mode="RGBA")).pixels()
    assert pixels.mode == "RGB" and pixels.getpixel((2, 2)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (b"no image", "is not a readable image"),
        ("data:text/plain;base64,AAAA", "not an image's data URL"),
        ("data:image/png;base64,***", "not base64"),
        ("data:image/png;base64,AAAA", "is not a readable image"),
        ("https://example.org/cat.png", "is on the network"),
        ("no-such-file.png", "cannot be read"),
        ("nul\0.png", "cannot be read"),
    ],
)
def test_what_is_no_picture_is_told(source: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        picture_from(source)


def test_a_small_file_may_not_hold_a_huge_picture() -> None:
    side = int(LARGEST_PICTURE**0.5) + 1
    with pytest.raises(InputError, match="pixels; expected at most"):
        picture_from(file_bytes(Image.new("1", (side, side))))


def test_a_cut_file_is_told() -> None:
    data = file_bytes(image(size=(64, 64)))
    with pytest.raises(InputError, match="is not a readable image"):
        picture_from(data[: len(data) // 2])


def test_prompts_with_and_without_pictures() -> None:
    picture = picture_from(image())
    prompt = ImagePrompt("What is this?", (picture,))
    assert (text_of(prompt), text_of("Hi")) == ("What is this?", "Hi")
    assert (pictures_of(prompt), pictures_of("Hi")) == ((picture,), ())
    assert with_text(prompt, "And this?") == ImagePrompt("And this?", (picture,))
    assert with_text("Hi", "Ho") == "Ho"
    assert key_of("Hi") == "Hi" and key_of(prompt) != key_of("What is this?")
    assert prompt_fields("Hi") == {"prompt": "Hi"}
    assert prompt_fields(prompt) == {"prompt": "What is this?", "images": [picture.digest]}
    assert len({prompt, ImagePrompt("What is this?", (picture,)), ImagePrompt("Other", (picture,))}) == 2
    with pytest.raises(InputError, match="has no picture"):
        ImagePrompt("What is this?", ())
    assert "bytes" in repr(picture) and len(repr(picture)) < 60


def test_rows_with_images_are_read(tmp_path: Path) -> None:
    image().save(tmp_path / "a.png")
    image((0, 0, 0)).save(tmp_path / "b.png")
    rows = (
        '{"prompt": "one", "image": "a.png"}\n{"prompt": "none"}\n'
        '{"prompt": "two", "image": ["a.png", "b.png"]}\n'
    )
    (tmp_path / "rows.jsonl").write_text(rows)
    one, none, two = read_prompts(str(tmp_path / "rows.jsonl"))
    a = Picture((tmp_path / "a.png").read_bytes())
    assert one == ImagePrompt("one", (a,)) and none == "none"
    assert text_of(two) == "two" and pictures_of(two)[0] == a and len(pictures_of(two)) == 2


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ('"missing.png"', "line 1: The image missing.png cannot be read"),
        ("3", "expected a path"),
        ("[]", "path"),
    ],
)
def test_rows_with_bad_images_are_named(tmp_path: Path, value: str, match: str) -> None:
    (tmp_path / "rows.jsonl").write_text(f'{{"prompt": "one", "image": {value}}}\n')
    with pytest.raises(InputError, match=match):
        read_prompts(str(tmp_path / "rows.jsonl"))
