"""Parts of self-contained pages: tables, pictures, and the rule that lets nothing else in."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from emcore.png import encode_png

HERE = Path(__file__).resolve().parent


def read(name: str) -> str:
    """The text of a file beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


def filled(name: str, parts: Mapping[str, str]) -> str:
    """A page beside this file with the head that all pages share, each of its marks <!--part--> replaced."""
    text = read(name).replace("<!--head-->\n", read("head.html"), 1)
    return re.sub(r"<!--(\w+)-->", lambda mark: parts[mark[1]], text)


def policy(style: str, script: str = "") -> str:
    """What a page may load: pictures in its own text, this style and this script, and nothing else."""
    scripts = f"script-src 'sha256-{digest(script)}'; " if script else ""
    return f"default-src 'none'; img-src data:; {scripts}style-src 'sha256-{digest(style)}'"


def digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def table(head: Iterable[str], rows: Iterable[Iterable[str]], caption: str) -> str:
    """An HTML table; cells are HTML already."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (f'<div class="scroll"><p class="caption">{caption}</p><table><thead><tr>{heads}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>")


def picture(image: np.ndarray, width: int, height: int, caption: str) -> str:
    """A figure of a uint8 image, drawn so many pixels large; its caption is HTML already."""
    data = base64.b64encode(encode_png(image)).decode()
    return (f'<figure><img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{caption}">'
            f"<figcaption>{caption}</figcaption></figure>")
