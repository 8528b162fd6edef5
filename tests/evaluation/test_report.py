"""The demo's report is one file without requests and scripts, for any model output."""

from pathlib import Path

from caldera.evaluation.report import (
    Column,
    Curve,
    GalleryItem,
    GalleryQuestion,
    Report,
    write_report,
)


def test_model_output_is_only_text(tmp_path: Path, photos: Path) -> None:
    """Markup in answers is escaped, images are embedded, and the policy forbids scripts and requests."""
    answer = '<script>alert(1)</script><img src="http://x.org/y.png">'
    report = Report(
        title="A run",
        summary="A test.",
        columns=[Column("assistant", "its answers.", {"overall": 0.25, "presence": 0.125})],
        counts={"overall": 8, "presence": 8},
        metrics={"CIDEr-D": "1.23"},
        curves=[
            Curve("stage 1", [(1, 3.0), (2, 2.0)], [(0, 3.5), (2, 2.5)]),
            Curve("bare", [(1, 1.0)], []),
        ],
        gallery=[
            GalleryItem(
                (photos / "0.png", photos / "1.png"),
                [
                    GalleryQuestion("presence", "Is there a dog?", answer, "yes", right=False),
                    GalleryQuestion("presence", "Is there a cat?", "no", "no", right=True),
                ],
            )
        ],
        seconds={"pretrain": 30.0, "finetune": 10.0},
        facts={"torch": "2.13"},
    )

    write_report(tmp_path / "r.html", report)

    page = (tmp_path / "r.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count('src="data:image/') == 4
    assert "default-src 'none'" in page
    assert "25.0 %" in page
    assert "(correct: yes)" in page
    assert "width:75%" in page
