"""`svt-jax --print-completion` prints what completes commands and options in a shell."""

import subprocess
import sys

import pytest

from svt_jax import cli


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    file = tmp_path_factory.mktemp("completion") / "svt-jax.bash"
    with pytest.MonkeyPatch.context() as patch, open(file, "w", encoding="utf-8") as out:
        patch.setattr(sys, "stdout", out)
        assert cli.main(["--print-completion", "bash"]) == 0
    return file


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("eval gl", "glue"),
        ("data g", "glue"),
        ("train --optim.learning_r", "--optim.learning_rate"),
        ("eval compare --hold", "--holdout"),
        ("predict --inp", "--input"),
    ],
)
def test_bash_completes_commands_and_their_options(bash_script, typed, expected):
    words = f"svt-jax {typed}".split()
    shell = f'source {bash_script}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_svt_jax; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", shell, "bash", *words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected]


def test_another_shell_is_refused_in_one_line(capsys):
    assert cli.main(["--print-completion", "fish"]) == 2
    error = capsys.readouterr().err
    assert error == "error: --print-completion is 'fish'; allowed are bash, zsh, tcsh. Name your shell.\n"
