"""What pyproject.toml can't say: the files of data/ that the library reads go into the wheel as deeptransfer/data."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("datasets.toml", "presets/*.toml", "grids/*.toml", "weights/*.npz")


class BuildWithData(build_py):
    """The usual build, then the copies; an editable install reads data/ where it is."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        data = Path(__file__).parent / "data"
        for file in (file for pattern in SHIPPED for file in data.glob(pattern)):
            copy = Path(self.build_lib, "deeptransfer", "data", file.relative_to(data))
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


setup(cmdclass={"build_py": BuildWithData})
