# The module that cffi compiles from csrc/native; the only place where Any is allowed.
from typing import Any

ffi: Any
lib: Any
