"""The build of the optional native extension; all metadata is in setup.cfg."""

from setuptools import setup

setup()
