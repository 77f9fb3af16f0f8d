"""The build of the optional extensions; all metadata is in setup.cfg.

Rules of this file:
- the package works without them: no compiler, no Python headers, no Cython, another platform: a warning, and Python code runs;
- CANAL_DNS_NO_EXTENSIONS=1 builds none; CANAL_DNS_STRICT=1 is for who changes them: a warning of the compiler is an error,
  and so is an extension that cannot be built; CANAL_DNS_SANITIZE=1 builds with the address and undefined behaviour sanitizers.
"""

import os
import sys
import warnings

from setuptools import Extension, setup

MODULES = ("canal_dns.server._batch_c", "canal_dns.server._forward_c")
HEADERS = ["canal_dns/server/_packets.h", "canal_dns/server/_lookahead.h", "canal_dns/server/_forward.h"]
STRICT = os.environ.get("CANAL_DNS_STRICT") == "1"
FLAGS = ["-O3", "-g0"]
if STRICT:
    FLAGS += ["-Wall", "-Wconversion", "-Werror"]
LINK = []
if os.environ.get("CANAL_DNS_SANITIZE") == "1":
    FLAGS = [*FLAGS, "-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    LINK = ["-fsanitize=address,undefined"]


def extensions():
    """What can be built here."""
    if os.environ.get("CANAL_DNS_NO_EXTENSIONS") == "1" or sys.platform != "linux" or sys.implementation.name != "cpython":
        return []
    made = [
        Extension(
            name,
            [name.replace(".", "/") + ".pyx"],
            depends=HEADERS,
            include_dirs=["canal_dns/server"],
            extra_compile_args=FLAGS,
            extra_link_args=LINK,
        )
        for name in MODULES
    ]
    try:
        from Cython.Build import cythonize

        made = cythonize(made, build_dir="build/cython", force=True)
    except Exception as problem:
        if STRICT:
            raise
        warnings.warn(f"no extension is built, Python code runs in its place: {problem}", stacklevel=1)
        return []
    for extension in made:
        extension.optional = not STRICT
    return made


setup(ext_modules=extensions())
