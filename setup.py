"""Packaging from settings.ini, so that every fact about the project is written once."""
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# what an installed package needs without a clone; `core.places.shipped` finds it
SHIPPED = (
    "data/logs/*.csv",
    "data/records.json",
    "data/step_times.csv",
    "data/checkpoints/lattice-*x*.pt",
    "data/checkpoints/lattice-*x*.json",
    "nbs/jobs/*.ipynb",
    "nbs/jobs/sweeps/*.yaml",
)


class BuildWithFiles(build_py):
    "Copies the few files that go with the package into it; an editable install uses those of the repository."

    def run(self):
        super().run()
        if self.editable_mode: return
        for path in sorted(p for pattern in SHIPPED for p in ROOT.glob(pattern)):
            goal = Path(self.build_lib, "reasonnb", "shipped", path.relative_to(ROOT))
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, goal)


config = ConfigParser(delimiters=["="], interpolation=None)
config.read(ROOT / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"],
    author=cfg["author"], author_email=cfg["author_email"], license="Apache-2.0", url=cfg["git_url"],
    python_requires=f">={cfg['min_python']}", packages=find_packages(include=["reasonnb", "reasonnb.*"]),
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split(), "hub": ["huggingface_hub", "datasets"], "cluster": ["ray"]},
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": ["reasonnb=reasonnb._modidx:d"]},
    cmdclass={"build_py": BuildWithFiles}, zip_safe=False,
)
