"""Upscale a photograph with the demonstration network and show what happened."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from PIL import Image, ImageDraw

import pixelrt
from pixelrt.runtime.images.encode import write_picture
from pixelrt.runtime.images.read import read_picture
from pixelrt.runtime.planning import RunOptions

CAT = Path(__file__).parent / "photos" / "cat.png"
CROP = 150
GAP = 8


def main() -> None:
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    picture = read_picture(arguments.photo)
    with pixelrt.load("demo") as model:
        info = model.info  # loads the graph and checks it against the reference
        start = time.perf_counter()
        result = model.run_picture(picture, RunOptions())
        seconds = time.perf_counter() - start
        verdict = model.fidelity["image"]
    target = arguments.out / f"{arguments.photo.stem}-x2.png"
    write_picture(target, result)
    pair = arguments.out / "before-after.png"
    before_after(Image.fromarray(picture.pixels.squeeze()), Image.open(target)).save(pair)
    (height, width), (high, wide) = picture.pixels.shape[:2], result.pixels.shape[:2]
    print(f"photo     {arguments.photo}  {width}x{height}")
    print(f"result    {target}  {wide}x{high}")
    print(f"compare   {pair}  (left: Pillow's bicubic, right: the network)")
    print(f"time      {seconds:.3f} s for {width * height / 1e6:.2f} megapixels in")
    print(f"backend   {info}")
    print(f"fidelity  {verdict}")


def before_after(before: Image.Image, after: Image.Image) -> Image.Image:
    """The middle of both at four times the photo's size, side by side, labelled."""
    left, top = (before.width - CROP) // 2, (before.height - CROP) // 3
    box = (left, top, left + CROP, top + CROP)
    bicubic = before.convert("RGB").resize(after.size, Image.Resampling.BICUBIC)
    side = CROP * 4
    sheet = Image.new("RGB", (2 * side + GAP, side + 24), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (image, label) in enumerate(((bicubic, "bicubic x2"), (after, "pixelrt demo x2"))):
        crop = image.convert("RGB").crop(tuple(2 * edge for edge in box))
        sheet.paste(crop.resize((side, side), Image.Resampling.NEAREST), (index * (side + GAP), 24))
        draw.text((index * (side + GAP) + 4, 6), label, fill="black")
    return sheet


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", nargs="?", type=Path, default=CAT)
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
