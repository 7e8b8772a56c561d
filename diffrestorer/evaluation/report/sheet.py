"""One sheet of thumbnails: a row per degradation; for each of its first photos degraded, each method, clean."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffrestorer.data.images import Photo, write_photo
from diffrestorer.evaluation.report.pictures import Report, card_text
from diffrestorer.evaluation.restoring.outputs import read_pixels
from diffrestorer.evaluation.suites import Item

SHEET_PHOTOS = 2
SHEET_TILE = 192
SHEET_LABEL_WIDTH = 140
SHEET_HEADER = 36
SHEET_GAP = 4


def write_contact_sheet(report: Report) -> None:
    """Write contact_sheet.png."""
    suite = report.suite
    blocks = min(SHEET_PHOTOS, max(len(suite.of(name)) for name in suite.degradations))
    columns = ["degraded"]
    columns += [method.title for method in report.restoring]
    columns += ["clean"]
    step = SHEET_TILE + SHEET_GAP
    block_width = len(columns) * step + 3 * SHEET_GAP
    width = SHEET_LABEL_WIDTH + blocks * block_width
    sheet = Image.new("RGB", (width, SHEET_HEADER + len(suite.degradations) * step), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=18)

    # Heads above the tiles of each block.
    for block in range(blocks):
        for column, title in enumerate(columns):
            left = SHEET_LABEL_WIDTH + block * block_width
            centre = left + column * step + SHEET_TILE // 2
            draw.text((centre, SHEET_HEADER // 2), _fit(title, font), "black", font, anchor="mm")

    # A row per degradation, with its first photos.
    for row, degradation in enumerate(suite.degradations):
        top = SHEET_HEADER + row * step
        draw.text(
            (12, top + SHEET_TILE // 2), "\n+ ".join(degradation.split("+")), "black", font, anchor="lm"
        )
        for block, item in enumerate(suite.of(degradation)[:blocks]):
            _draw_row(sheet, report, item, SHEET_LABEL_WIDTH + block * block_width, top)
    write_photo(report.output_dir / "contact_sheet.png", Photo(np.asarray(sheet)))


def _draw_row(
    sheet: Image.Image,
    report: Report,
    item: Item,
    left: int,
    top: int,
) -> None:
    """Draw the tiles of one item, each but the last with its PSNR."""
    values = report.values(item)
    tiles: list[tuple[Path | None, dict[str, float]]] = [(item.lq, values.get("degraded", {}))]
    for method in report.restoring:
        output = method.output(item, report.output_dir)
        tiles.append((output, values[method.name]))
    tiles.append((item.gt, {}))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for column, (file, scores) in enumerate(tiles):
        if file is None:
            continue
        tile = Image.fromarray(read_pixels(file))
        tile = tile.resize((SHEET_TILE, SHEET_TILE), Image.Resampling.LANCZOS)
        x = left + column * (SHEET_TILE + SHEET_GAP)
        sheet.paste(tile, (x, top))

        # The score stands in the corner, on black.
        if "psnr" in scores:
            corner = (x + 5, top + SHEET_TILE - 5)
            text = card_text("psnr", scores["psnr"])
            box = draw.textbbox(corner, text, font, anchor="lb")
            grown = (box[0] - 3, box[1] - 3, box[2] + 3, box[3] + 3)
            draw.rectangle(grown, "black")
            draw.text(corner, text, "white", font, anchor="lb")


def _fit(title: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Cut a title to the width of a tile."""
    if font.getlength(title) <= SHEET_TILE:
        return title
    while title and font.getlength(title + "...") > SHEET_TILE:
        title = title[:-1]
    return title + "..."
