"""The plain manifests as objects, for the tests here."""

import yaml

from manifests.tools.places import MANIFESTS


def load(path):
    """Every object of a file."""
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def folder(path=MANIFESTS):
    """The files that `kubectl apply -f` reads, in its order."""
    return sorted(path.glob("*.yaml"))


def applied():
    """Every object of `kubectl apply -f manifests/`, in order."""
    return [one for path in folder() for one in load(path)]


def everything():
    return applied() + [one for path in folder(MANIFESTS / "optional") for one in load(path)]


def only(kind, name="canal-dns", among=None):
    """The one object of a kind and name."""
    (found,) = [one for one in among or applied() if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def key(one):
    return one["apiVersion"], one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]
