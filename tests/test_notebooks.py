"""What a reader may copy runs: the notebooks from top to bottom, the Python blocks of the pages, the links between them."""

import json
import os
import re
import tomllib
from dataclasses import asdict
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from bayesatoms import catalogue
from bayesatoms.inference.campaign import Settings
from bayesatoms.study import StudyFile

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = sorted((ROOT / "docs").glob("*.md"))
DECLARING, STUDY_FILE = ROOT / "docs" / "declaring_models.md", ROOT / "docs" / "study_file.md"
LONGEST = 120  # characters in a line of a page


def blocks(path: Path) -> list[tuple[int, str]]:
    """The Python blocks of a page, each with the number of its first line."""
    text = path.read_text(encoding="utf8")
    found = re.finditer(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)) + 1, match.group(1)) for match in found]


# ---------------------------------------------------------------------- notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_valid_and_stripped(path):
    raw = json.loads(path.read_text(encoding="utf8"))
    assert (raw["nbformat"], raw["nbformat_minor"]) == (4, 5)
    assert raw["metadata"]["kernelspec"]["name"] == "python3"
    nbformat.validate(raw)
    assert len({cell["id"] for cell in raw["cells"]}) == len(raw["cells"])
    for cell in raw["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None), cell["id"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore")  # in this process runs Jupyter only; warnings of the notebook itself are looked at below
def test_notebook_runs(path, tmp_path, monkeypatch):
    # the kernel starts elsewhere, so that a notebook leans on the package only and leaves nothing behind
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")  # tqdm, where there are no widgets
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    printed = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert any("image/png" in o.get("data", {}) for o in printed)
    assert not [o.text for o in printed if o.get("name") == "stderr"]


# ---------------------------------------------------------------------- pages


def test_docs_blocks():
    """The blocks of one page run one after another, as a reader would type them."""
    found = blocks(DECLARING)
    assert len(found) >= 5
    namespace = {"__name__": "declaring_models"}
    for line, source in found:
        exec(compile("\n" * (line - 1) + source, str(DECLARING), "exec"), namespace)


def test_the_models_file_of_the_docs_loads(tmp_path):
    [source] = [source for _, source in blocks(DECLARING) if source.startswith('"""my_models.py')]
    path = tmp_path / "my_models.py"
    path.write_text(source, encoding="utf8")
    loaded = catalogue.load(path)
    assert loaded.models[0].name == "R"
    assert len(loaded.models) > 1
    assert loaded.data


def test_the_study_file_page_names_every_key_and_default():
    text = STUDY_FILE.read_text(encoding="utf8")
    example = re.search(r"^```toml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL).group(1)
    StudyFile.model_validate(tomllib.loads(example))
    parts = re.split(r"^## `\[+(\w+)\]+`$", text.partition("## The results folder")[0], flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert set(sections) == set(StudyFile.model_fields)
    for name, field in StudyFile.model_fields.items():
        kinds = [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if hasattr(kind, "model_fields")]
        rows = re.findall(r"^\| `(\w+)`", sections[name], flags=re.MULTILINE)
        assert sorted(rows) == sorted(kinds[0].model_fields), name
    for key, value in asdict(Settings()).items():
        assert f"| `{key}` | {value} |" in sections["infer"]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_page_links_and_lines(path):
    text = path.read_text(encoding="utf8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert not [t for t in targets if not (path.parent / t).is_file()]
    assert not [n for n, line in enumerate(text.splitlines(), 1) if len(line) > LONGEST]


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"(\w+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf8"), flags=re.MULTILINE)
    assert sorted(listed) == [p.name for p in PAGES]
