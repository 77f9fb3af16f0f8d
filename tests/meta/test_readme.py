"""What the README shows is what happens: its commands run, its outputs are those of the demo, its blocks are accepted."""

import re
import shlex
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import pytest
import yaml

from canal_dns.app.config import Configuration
from canal_dns.cli import main, options
from tests.meta import prose
from tests.process import Process

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands():
    """Every `canal-dns …` line of the shell blocks, without its comment."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("canal-dns ")]


def test_there_is_something_to_test():
    assert len(commands()) >= 4 and len(blocks("console")) >= 3 and len(blocks("yaml")) == 1


@pytest.mark.parametrize("argv", commands(), ids=" ".join)
def test_every_command_parses_and_those_that_end_succeed(argv, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    given = options.parser().parse_args(argv)
    if given.command == "serve":
        assert options.configuration(given).load().forward.upstreams
    else:
        assert main(argv) == 0
        assert capsys.readouterr().out


def test_what_it_does_in_a_cluster_is_what_install_md_does():
    """There the commands run on a real cluster (tests/e2e/test_docs.py); Helm's with the values of that cluster behind it."""
    wanted = [
        line
        for block in prose.blocks(ROOT / "README.md")
        if block.kind in ("cluster", "helm")
        for line in block.text.splitlines()
    ]
    run = [block.text for block in prose.blocks(ROOT / "docs" / "install.md") if block.kind in ("cluster", "helm")]
    assert len(wanted) == 3
    assert [line for line in wanted if not any(line in text for text in run)] == []


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_configuration_block_is_accepted(tmp_path):
    path = tmp_path / "canal-dns.yaml"
    path.write_text(blocks("yaml")[0])
    assert Configuration(path, {}).load() == Configuration(ROOT / "config" / "canal-dns.yaml", {}).load()
    assert yaml.safe_load(blocks("yaml")[0])


def test_the_dig_outputs_are_those_of_the_demo():
    """Each `dig` of the console blocks, asked of a demo; the answers must stand in the README below it."""
    with Process("demo", "--listen", "127.0.0.1:0", "--admin", "off") as process:
        port = int(process.line_with("canal-dns listens on").split()[3].rpartition(":")[2])
        process.line_with("Ctrl-C ends it.")
        asked = 0
        for block in blocks("console"):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE):
                command, _, output = part.partition("\n")
                if not command.startswith("dig "):
                    continue
                name = command.split()[-1]
                reply = dns.query.udp(dns.message.make_query(name, "A", use_edns=0), "127.0.0.1", port=port, timeout=5)
                answers = [str(record) for rrset in reply.answer for record in rrset]
                if "+short" in command:
                    assert output.split() == answers
                else:
                    assert f"status: {dns.rcode.to_text(reply.rcode())}" in output
                    assert re.search(rf"^{re.escape(name)}\. {reply.answer[0].ttl}\tIN\tA\t{answers[0]}$", output, re.MULTILINE)
                    assert f"rcvd: {len(reply.to_wire())}" in output
                asked += 1
        assert asked == 3


def test_the_explanation_is_that_of_the_demo(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for block in blocks("console"):
        command, _, output = block.removeprefix("$ ").partition("\n")
        if command.startswith("canal-dns explain"):
            assert main(shlex.split(command)[1:]) == 1
            printed = capsys.readouterr().out.splitlines()
            for line in output.splitlines():
                assert line == "..." or line in printed
            return
    pytest.fail("the README explains nothing")
