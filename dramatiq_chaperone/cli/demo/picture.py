"""A screen as an SVG file that needs nothing but itself: no font and no script from elsewhere.

The one in README.md is made by ``chaperone demo --for 30 --picture docs/images/demo.svg``.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import RenderableType

#: In characters.
COLUMNS: Final = 116
ROWS: Final = 34

#: Rich fills in the names; doubled braces are those of CSS.
_FORMAT: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="chaperone demo">
  <style>
    .{unique_id}-matrix {{ font: {char_height}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
    .{unique_id}-matrix text {{ white-space: pre; }}
    .{unique_id}-title {{ font: bold 18px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
    {styles}
  </style>
  <defs>
    <clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
    {lines}
  </defs>
  {chrome}
  <g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)" xml:space="preserve">
    {backgrounds}
    <g class="{unique_id}-matrix">{matrix}</g>
  </g>
</svg>
"""


def save(content: RenderableType, path: Path) -> None:
    """Write *content* into *path*, as a terminal would show it."""
    from rich.console import Console

    console = Console(record=True, width=COLUMNS, height=ROWS, file=io.StringIO(), highlight=False, color_system="truecolor")
    console.print(content, "")
    text = console.export_svg(title="chaperone demo", code_format=_FORMAT, unique_id="demo")
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
