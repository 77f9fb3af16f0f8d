"""The error tree: what each says, and that its docstring lists it."""

import pytest

from canal_dns import errors

ALL = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.CanalError)]


@pytest.mark.parametrize("error", ALL)
def test_the_tree_in_the_docstring_is_complete(error):
    assert f" {error.__name__}" in f" {errors.__doc__}"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.ConfigError("binding.ttl", "x", "a number is needed"), "binding.ttl: 'x' is not usable; a number is needed"),
        (errors.ManifestError("a.yaml", 7, "not YAML"), "a.yaml:7: not YAML"),
        (errors.ManifestError("a.yaml", None, "gone"), "a.yaml: gone"),
        (errors.ListenError("[::]:53", "UDP", "in use"), "cannot listen on [::]:53 (UDP): in use"),
    ],
)
def test_the_text_is_fit_for_people(error, text):
    assert str(error) == text
    assert isinstance(error, errors.CanalError)
