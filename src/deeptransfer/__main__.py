"""``python -m deeptransfer``: see :mod:`deeptransfer.runs.cli`."""

from deeptransfer.runs.cli import app

if __name__ == "__main__":
    app()
