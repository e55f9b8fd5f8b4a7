"""Packaging from settings.ini, so that every fact about the project is written once."""
from configparser import ConfigParser
from setuptools import setup, find_packages

config = ConfigParser(delimiters=["="], interpolation=None)
config.read("settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"],
    author=cfg["author"], author_email=cfg["author_email"], license="Apache-2.0", url=cfg["git_url"],
    python_requires=f">={cfg['min_python']}", packages=find_packages(include=["reasonnb", "reasonnb.*"]),
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split(), "hub": ["huggingface_hub", "datasets"], "cluster": ["ray"]},
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": ["reasonnb=reasonnb._modidx:d"]},
    include_package_data=True, zip_safe=False,
)
