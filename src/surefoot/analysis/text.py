"""Figures, durations and pictures as text, for tables, reports and the progress display."""

import base64
import html


def duration(seconds: float) -> str:
    """Seconds as 12 s, 3 min 20 s or 1 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def figure(value: float) -> str:
    """A value to three significant digits; whole from 1,000 on."""
    if value == 0 or 1e-3 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1e}"


def percent(share: float) -> str:
    """A share in percent; one below 2 % keeps a decimal."""
    return f"{100 * share:.1f} %" if 0 < abs(share) < 0.02 else f"{100 * share:.0f} %"


def data_url(kind: str, data: bytes) -> str:
    """A picture inside a page, which then loads nothing; as an image it can run no script."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def picture_tag(wide: str, narrow: str, *, alt: str) -> str:
    """An HTML picture of two addresses: `narrow` is shown on screens up to 600 pixels."""
    return (
        f'<picture><source media="(max-width: 600px)" srcset="{narrow}">'
        f'<img alt="{html.escape(alt)}" src="{wide}"></picture>'
    )
