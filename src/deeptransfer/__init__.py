"""Deep transfer learning in PyTorch: the library behind the book "Walk through Deep Transfer Learning"."""

from deeptransfer.version import __version__

__all__ = ["__version__"]
