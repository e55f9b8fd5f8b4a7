"A real JupyterLab, driven by a browser with default settings, on a copy of the repository."
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

import notebook_form

ROOT = Path(__file__).parents[1]
LIBRARY, NARRATIVE, JOB = "nbs/core/06_records.ipynb", "nbs/logs/lattice/00_watch.ipynb", "nbs/jobs/looped.ipynb"


def notebook(*cells: str, outputs=()) -> str:
    "A notebook of code cells, the outputs below the first one."
    new = [nbformat.v4.new_code_cell(source, id=f"c{i}") for i, source in enumerate(cells)]
    new[0].outputs = [nbformat.from_dict(output) for output in outputs]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    return nbformat.writes(nbformat.v4.new_notebook(cells=new, metadata=kernel)) + "\n"


def test_all_notebooks_have_the_form_that_jupyterlab_writes():
    assert notebook_form.changed(write=False) == [], "python tests/notebook_form.py"


def test_form_folds_code_and_empties_jobs():
    printed = {"output_type": "stream", "name": "stdout", "text": "é\n1\n"}
    text = notebook("#| code-fold: true\n1", "#| code-fold: false\n2", outputs=[printed])
    kept, emptied = (nbformat.reads(notebook_form.normal(text, job), 4) for job in (False, True))
    assert [cell.metadata for cell in kept.cells] == [{"jupyter": {"source_hidden": True}}, {}]
    assert kept.cells[0].outputs and not emptied.cells[0].outputs
    opened = nbformat.reads(text, 4)
    opened.cells[1].metadata = {"jupyter": {"source_hidden": True}, "tags": ["parameters"]}  # folded by a reader
    normal = nbformat.reads(notebook_form.normal(nbformat.writes(opened)), 4)
    assert normal.cells[1].metadata == {"tags": ["parameters"]}
    assert notebook_form.normal(notebook_form.normal(text)) == notebook_form.normal(text)
    assert "é" in notebook_form.normal(text)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The repository as its users have it, with some of its notebooks: in their form, all of it committed."
    root = tmp_path_factory.mktemp("lab") / "repository"
    for part in ("nbs/core", "nbs/jobs", "nbs/logs/lattice", "reasonnb", "data/logs", "data/checkpoints", "tests"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "Makefile", "nbs/start.ipynb", "nbs/nbdev.yml", "nbs/_quarto.yml"):
        shutil.copy(ROOT / name, root / name)
    (root / ".venv").mkdir()
    (root / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (root / ".gitignore").write_text((ROOT / ".gitignore").read_text() + "/home/\n/scratch/\n")
    (root / "scratch").mkdir()
    notebook_form.changed(write=True, nbs=root / "nbs")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "copy")
    return root


def git(root, *words) -> str:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout


def environment(root) -> dict:
    places = {f"JUPYTER_{kind}_DIR": str(root / "home" / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    own = {"HOME": str(root / "home"), "IPYTHONDIR": str(root / "home" / "ipython"), "PYTHONPATH": str(root),
           "OMP_NUM_THREADS": "1", "SHELL": "/bin/bash"}
    unset = ("REASONNB_ROOT", "REASONNB_PROGRESS", "MPLBACKEND")
    return {k: v for k, v in os.environ.items() if k not in unset} | places | own


def clean(root) -> str:
    "What git sees after the cleaning steps of `make export`."
    for command in (["-m", "nbdev.clean"], ["tests/notebook_form.py"]):
        call = ["-c", "from nbdev.clean import nbdev_clean; nbdev_clean()"] if command[0] == "-m" else command
        subprocess.run([sys.executable, *call], cwd=root, env=environment(root), check=True)
    return git(root, "status", "--porcelain")


@pytest.fixture(scope="module")
def address(copy):
    "JupyterLab as `make lab` starts it."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # inside `make test` it would tell of its folder
    alone = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    made = subprocess.run(["make", "-n", "-o", ".venv/ok", "lab"], cwd=copy, env=alone, capture_output=True,
                          text=True, check=True)
    options = f"--no-browser --port={port} --ServerApp.port_retries=0 --IdentityProvider.token="
    with open(copy / "home.log", "wb") as log:
        process = subprocess.Popen(["bash", "-c", f"{made.stdout.strip()} {options}"], cwd=copy, env=environment(copy),
                                   stdout=log, stderr=log, start_new_session=True)
    (copy / ".git" / "info" / "exclude").write_text("home.log\n")
    where = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try: urllib.request.urlopen(f"{where}/api/status", timeout=5)
            except OSError: time.sleep(0.2)
            else: break
        else: pytest.fail(f"JupyterLab does not answer: {(copy / 'home.log').read_text()[-500:]}")
        yield where
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


class Lab:
    "What a person does in JupyterLab."
    def __init__(self, page, address, root):
        self.page, self.address, self.root = page, address, root

    def open(self, path):
        self.path = self.root / path
        self.page.goto(f"{self.address}/lab/tree/{path}?reset")
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        self.idle()

    def idle(self): self.page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]')

    def run_all(self):
        "Run all cells; a click that came before the kernel was there is lost, so click again."
        from playwright.sync_api import TimeoutError as TooLate
        asked = self.page.locator(".jp-InputPrompt", has_text=re.compile(r"\[[*\d]")).first  # [*] or a number
        for _ in range(6):
            self.page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
            self.page.get_by_text("Run All Cells", exact=True).click()
            try: return asked.wait_for(state="attached", timeout=20_000)
            except TooLate: pass
        raise TimeoutError("JupyterLab runs no cell")

    def save(self) -> list:
        "Save; the outputs of all code cells."
        before = self.path.stat().st_mtime_ns
        for tenth in range(600):
            if tenth % 50 == 0: self.page.keyboard.press("Control+s")  # lost if another save is under way
            time.sleep(0.1)
            if self.path.stat().st_mtime_ns == before: continue
            try: cells = json.loads(self.path.read_text())["cells"]
            except ValueError: continue  # it is being written
            return [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]
        raise TimeoutError(f"{self.path} was not saved")

    def run_to_the_end(self) -> list:
        "Run all cells until the last one has outputs; cells that are not on the screen are seen in the file only."
        self.run_all()
        end = time.monotonic() + 240
        while not (outputs := self.save())[-1] and time.monotonic() < end: time.sleep(1)
        self.idle()
        return outputs


@pytest.fixture(scope="module")
def lab(chromium, address, copy):
    context = chromium.new_context(viewport=dict(width=1300, height=1100))
    page = context.new_page()
    page.set_default_timeout(90_000)
    yield Lab(page, address, copy)
    context.close()


@pytest.mark.browser
def test_lab_opens_a_start_page_and_its_terminal_knows_the_command(lab):
    lab.page.goto(lab.address)
    lab.page.get_by_role("link", name="A Sudoku run").click()
    lab.page.get_by_role("heading", name="A Sudoku run").wait_for()
    lab.page.goto(f"{lab.address}/lab?reset")
    lab.page.locator('.jp-LauncherCard[title*="terminal" i]').click()
    lab.page.wait_for_selector(".jp-Terminal .xterm-screen")
    said = lab.root / "scratch" / "which"
    for _ in range(60):  # the shell may not listen yet
        lab.page.locator(".jp-Terminal .xterm-helper-textarea").focus()
        lab.page.keyboard.type(f"pwd > {said}; command -v reasonnb >> {said}\n")
        time.sleep(1)
        if said.exists() and len(said.read_text().split()) == 2: break
    assert said.read_text().split() == [str(lab.root), str(lab.root / ".venv" / "bin" / "reasonnb")]


@pytest.mark.browser
def test_open_save_and_clean_leaves_no_difference(lab):
    for path in (LIBRARY, NARRATIVE, JOB):
        lab.open(path)
        lab.save()
    assert git(lab.root, "status", "--porcelain"), "a save writes something: the test would see nothing otherwise"
    assert clean(lab.root) == ""


@pytest.mark.browser
def test_job_notebook_keeps_its_run_shows_it_again_and_is_clean_afterwards(lab):
    lab.open(JOB)
    outputs = lab.run_to_the_end()
    text = json.dumps(outputs)
    assert "The run is kept in" in text and "That is no fault: a smoke run makes" in text
    assert '"stderr"' not in text and '"error"' not in text
    (record,) = (lab.root / "papermill_runs" / "own" / "notebook").rglob("record.json")
    first = record.read_bytes()
    git(lab.root, "checkout", "-q", "--", JOB)  # without outputs
    lab.open(JOB)
    again = lab.run_to_the_end()
    assert record.read_bytes() == first
    shown, first_shown = ([one["data"] for one in last] for last in (again[-1], outputs[-1]))
    assert shown == first_shown, "the board is that of the trained network"
    assert clean(lab.root) == ""


TROUBLE = ("""import sys, tempfile
sys.path.insert(0, 'tests')
from toy_task import *
config, folder = ToyConfig(steps=1_000_000, eval_every=10), tempfile.mkdtemp()
task = ToyTask(config)""", "%cd -q ..", "fit(task, config, folder)", "fit(task, config.replace(steps=3), folder)",
           "%tb", "!command -v reasonnb")


@pytest.mark.browser
def test_progress_interrupt_and_errors_are_short_and_say_what_to_do(lab):
    (lab.root / "scratch" / "trouble.ipynb").write_text(notebook(TROUBLE[1], *(TROUBLE[0], *TROUBLE[2:])))
    lab.open("scratch/trouble.ipynb")
    lab.run_all()
    lab.page.locator(".jp-OutputArea-output", has_text="loss").wait_for()
    lab.page.keyboard.press("Escape")
    lab.page.keyboard.press("i")
    lab.page.keyboard.press("i")
    lab.page.locator(".jp-OutputArea-output", has_text="stopped after update").wait_for()
    for number in (3, 4, 5):
        lab.page.locator(".jp-Cell").nth(number).locator(".jp-InputPrompt").click()
        lab.page.keyboard.press("Shift+Enter")
        lab.page.locator(".jp-Cell").nth(number).locator(".jp-OutputArea-output").first.wait_for()
    lab.idle()
    _, _, stopped, refused, asked, found = lab.save()[:6]  # Shift+Enter in the last cell has added one
    assert [output["output_type"] for output in stopped] == ["display_data", "error"]
    assert list(stopped[0]["data"]) == ["text/plain"] and "\r" not in "".join(stopped[0]["data"]["text/plain"])
    assert len(stopped[1]["traceback"]) == 1 and "of 1000000, which is saved in /" in stopped[1]["traceback"][0]
    assert refused[0]["traceback"][0].startswith("UserError: ") and "steps=1000000, not 3" in refused[0]["traceback"][0]
    assert len(refused[0]["traceback"]) == 2
    assert "in fit" in "".join(asked[0]["traceback"])
    assert "".join(found[0]["text"]).strip() == str(lab.root / ".venv" / "bin" / "reasonnb")


FILM = """from reasonnb.sudoku.board import BoardShape
from reasonnb.systems.lattice.film import Animation
from reasonnb.systems.lattice.trace import Frame
Animation([Frame('1' * 216, 'g' + 'o' * 35, f'number {i}') for i in range(9)], BoardShape(2, 3))"""


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_film_is_a_still_until_it_may_run_and_then_has_its_keys(lab, theme):
    from reasonnb.sudoku.board import BoardShape
    from reasonnb.systems.lattice.film import Animation
    from reasonnb.systems.lattice.trace import Frame
    settings = lab.root / "home" / "CONFIG" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "themes.jupyterlab-settings").write_text(json.dumps({"theme": f"JupyterLab {theme}"}))
    film = Animation([Frame("1" * 216, "g" + "o" * 35, f"number {i}") for i in range(9)], BoardShape(2, 3))
    output = {"output_type": "display_data", "metadata": {}, "data": film._repr_mimebundle_()}
    (lab.root / "scratch" / f"film{theme}.ipynb").write_text(notebook(FILM, outputs=[output]))
    lab.open(f"scratch/film{theme}.ipynb")
    page, shown = lab.page, lab.page.locator(".jp-OutputArea-output").first
    assert page.evaluate("document.body.dataset.jpThemeLight") == str(theme == "Light").lower()
    text = shown.inner_text()
    assert "Run this cell to play" in text and "111" not in text.replace("\n", "").replace(" ", "")
    assert shown.locator("img").evaluate("i => i.complete && i.naturalWidth > 100")
    assert not shown.locator("button, input").count()
    lab.run_all()
    page.wait_for_selector(".rn-live")
    lab.idle()
    colours = "[getComputedStyle(e).backgroundColor, getComputedStyle(e.querySelector('text.big')).fill]"
    style = page.locator(".rn-live").evaluate(f"e => {colours}")
    assert style == ["rgb(255, 255, 255)", "rgb(28, 28, 28)"]
    says = page.locator(".rn-live p")
    assert says.inner_text() == "0 of 8: number 0"
    page.locator(".rn-live input").focus()
    for key, number in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("ArrowUp", 2), ("ArrowDown", 1)):
        page.keyboard.press(key)
        focused = page.evaluate("document.activeElement.tagName")
        assert (says.inner_text(), focused) == (f"{number} of 8: number {number}", "INPUT")
    page.locator(".rn-live button").click()
    page.locator(".rn-live p", has_text="3 of 8").wait_for()
    page.keyboard.press("ArrowRight")
    assert page.locator(".rn-live button").inner_text() == "play", "a key stops the film"
