"""One file's bytes: what is cut into which objects, and which bytes are refused, with their line."""

import json
import subprocess
import sys

import pytest

from canal_dns.errors import ManifestError
from canal_dns.kube import documents


def read(text, path="web.yaml"):
    return documents.read(text.encode() if isinstance(text, str) else text, path)


def kinds(text, path="web.yaml"):
    return [document.raw["kind"] for document in read(text, path)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("# nothing\n", []),
        ("---\n---\n", []),
        ("kind: Service", ["Service"]),
        ("kind: Service\n---\nkind: Pod\n", ["Service", "Pod"]),
        ("kind: Service\n---\n# a comment only\n---\nkind: Pod\n", ["Service", "Pod"]),
        ("kind: List\nitems: [{kind: Service}, {kind: Pod}]", ["Service", "Pod"]),
        ("kind: List\nitems: []", []),
        ("kind: List\nitems:\n", []),
        ("kind: ServiceList\nitems: [{metadata: {name: web}}]", ["Service"]),
        ("kind: List\nitems: [{kind: ServiceList, items: [{}]}, {kind: Pod}]", ["Service", "Pod"]),
        ("kind: AllowList\nspec: {}", ["AllowList"]),
        ("\ufeffkind: Service", ["Service"]),
        ('{"kind": "Service"}', ["Service"]),
    ],
)
def test_objects_of_a_file(text, expected):
    assert kinds(text) == expected


def test_items_of_a_typed_list_get_kind_and_version():
    (document,) = read("apiVersion: v1\nkind: ServiceList\nitems: [{metadata: {name: web}}]")
    assert document.raw == {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}


def test_json_is_told_by_the_ending():
    with_tabs = '{\n\t"kind": "Service"\n}'
    assert kinds(with_tabs, "web.json") == ["Service"]
    assert kinds(with_tabs, "WEB.JSON") == ["Service"]


def test_each_object_has_the_line_of_its_document():
    documents_ = read("# first\nkind: Service\n---\n\nkind: Pod\n")
    assert [document.line for document in documents_] == [2, 5]


def test_utf16_is_text_too():
    assert kinds("kind: Service".encode("utf-16")) == ["Service"]


@pytest.mark.parametrize("written", ["2024-01-01T00:00:00Z", "2024-01-01", '"2024-01-01T00:00:00Z"', "2024-13-45"])
def test_times_stay_text(written):
    (document,) = read(f"kind: Service\nmetadata: {{creationTimestamp: {written}}}")
    assert document.raw["metadata"]["creationTimestamp"] == written.strip('"')


def test_anchors_and_merge_keys_are_understood():
    (document,) = read("kind: Pod\na: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a")
    assert document.raw["b"] == {"x": 1, "y": 2}
    assert document.raw["c"] == {"x": 1}


BOMB = "kind: Pod\na: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{next_}: &{next_} [{', '.join([f'*{name}'] * 10)}]\n" for name, next_ in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "kind: Pod\na: &a {0: 0, 1: 0, 2: 0, 3: 0, 4: 0, 5: 0, 6: 0, 7: 0, 8: 0, 9: 0}\n" + "".join(
    f"{next_}: &{next_} {{<<: [{', '.join([f'*{name}'] * 10)}]}}\n" for name, next_ in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("data", "line", "problem"),
    [
        (b"kind: }", 1, "not YAML"),
        (b"kind: Pod\n\tx: 1", 2, "not YAML"),
        (b"kind: Pod\n---\nkind: Pod\n---\n- {}\n", 5, "a Kubernetes object is needed, this is a list"),
        (b"just a text", 1, "this is a text"),
        (b"42", 1, "type int"),
        (b"apiVersion: v1", 1, "`kind` is missing"),
        (b"kind: 7", 1, "`kind` is missing"),
        (b"kind: List\nitems: 7", 1, "`items`"),
        (b"kind: List\nitems: [7]", 1, "a Kubernetes object is needed"),
        (b"kind: List\nitems: [" + b"{kind: List, items: [" * 4 + b"]}" * 4 + b"]", 1, "deep"),
        (b"kind: Pod\n\n\xff", 3, "not text"),
        (b"kind: Pod\na: \x01", 2, "not text"),
        (b"kind: !!python/object/apply:os.system [id]", 1, "python/object"),
        (b"kind: Pod\na: !secret x", 2, "!secret"),
        (b"kind: Pod\n---\nkind: Pod\na: !!bool maybe", 3, "KeyError"),
        (b"kind: Pod\na: !!int ''", 1, "IndexError"),
        (b"kind: Pod\na: !!timestamp x", 1, "AttributeError"),
        (b"kind: Pod\na: " + b"9" * 5000, 1, "ValueError"),
        (b"kind: Pod\n? {a: 1}\n: 2", 2, "unhashable"),
        (b"kind: &a [*a]", 1, "an alias to what contains it"),
        (b"kind: *nothing", 1, "undefined alias"),
        (b"kind: Pod\na: 0x" + b"f" * 5000, 1, "ValueError"),
        (b"kind: Pod\na: 0b" + b"1" * 50_000, 1, "ValueError"),
        (BOMB.encode(), 6, "more than 100"),
        (MERGE_BOMB.encode(), 6, "more than 100"),
        (b"[" * 100_000, 1, "nested deeper than 100"),
        (b"- " * 100_000, 1, "nested deeper than 100"),
        ("\n".join(" " * depth + "a:" for depth in range(3000)).encode(), 100, "nested deeper than 100"),
    ],
)
def test_bytes_that_are_refused(data, line, problem):
    with pytest.raises(ManifestError) as caught:
        documents.read(data, "web.yaml")
    assert problem in caught.value.problem
    assert (caught.value.path, caught.value.line) == ("web.yaml", line)


@pytest.mark.parametrize(
    ("data", "line"),
    [(b'{"kind": "Pod",\n x}', 2), (b"", 1), (b'{"kind": "Pod"} {}', 1), (b"[" * 100_000, None), (b"\xff", None), (b"7", None)],
)
def test_json_that_is_refused(data, line):
    with pytest.raises(ManifestError) as caught:
        documents.read(data, "web.json")
    assert caught.value.line == line


def test_as_many_values_as_octets_are_no_bomb():
    data = b"kind: Pod\na: [" + b"[]," * 150_000 + b"]\n"
    (document,) = documents.read(data, "web.yaml")
    assert len(document.raw["a"]) == 150_000


@pytest.mark.parametrize("text", ["1:30", "-1:30:59", "1:30.5", "!!int 1:30", "!!float '1:30'"])
def test_numbers_to_the_base_of_60_are_texts(text):
    (document,) = read(f"kind: Pod\na: {text}\n")
    assert document.raw["a"] == text.rpartition(" ")[2].strip("'")


def test_a_long_text_that_looks_like_a_time_takes_no_time():
    """A million digits to the base of 60 took PyYAML minutes."""
    (document,) = documents.read(b"kind: Pod\na: 1" + b":59" * 1_000_000, "web.yaml")
    assert len(document.raw["a"]) == 3_000_001


def test_the_same_without_libyaml():
    program = (
        "import sys; sys.modules['yaml._yaml'] = None\n"
        "from canal_dns.kube import documents\n"
        "print([d.raw for d in documents.read(sys.stdin.buffer.read(), 'x.yaml')])\n"
    )
    text = "kind: Pod\nat: 2024-01-01\n---\nkind: Service\n"
    done = subprocess.run([sys.executable, "-c", program], input=text.encode(), capture_output=True, check=True)
    assert done.stdout.decode().strip() == str([{"kind": "Pod", "at": "2024-01-01"}, {"kind": "Service"}])


def test_what_yaml_gives_json_could_have_given():
    (document,) = read("kind: Pod\nspec: {a: [1, 2.5, true, null, x]}")
    assert json.loads(json.dumps(document.raw)) == document.raw
