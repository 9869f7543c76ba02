"""kvstore: the JSON backend you can PUT to.

`create_app()` is the whole service as a Flask application; `blueprint()` is the same to mount in an application of your
own. README.md says what it does, DESIGN.md why.
"""

from kvstore.app import blueprint, create_app

__all__ = ["blueprint", "create_app"]
__version__ = "0.1.0"
