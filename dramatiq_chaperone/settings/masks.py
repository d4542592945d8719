"""What is secret is not shown."""

from __future__ import annotations

import re
from typing import Final

MASK: Final = "***"


def mask_url(url: str) -> str:
    """*url* without its password, also where that stands in the query, or holds characters that it must not."""
    url, found = re.subn(r"(?<=://)([^/?#@:]*):[^/?#]*@", rf"\1:{MASK}@", url)
    if not found:
        url = re.sub(r"(?<=://)([^/?#@:]*):.*@", rf"\1:{MASK}@", url)
    return re.sub(r"([?&][^=&#]*(?:pass|secret|token|key)[^=&#]*=)[^&#]*", rf"\1{MASK}", url, flags=re.IGNORECASE)
