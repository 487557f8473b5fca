import subprocess
import sys

COMPLETE = """
eval "$(brats-train -sc install=bash)"
complete -p brats-train >&2
COMP_LINE="$LINE" COMP_POINT=${#LINE} COMP_WORDS=($LINE)
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
hydra_bash_completion
echo "${COMPREPLY[@]}"
"""


def test_bash_completes_a_choice_of_a_console_script(tmp_path):
    script = tmp_path / "brats-train"
    script.write_text(f"#!{sys.executable}\nfrom brats_lightning.train import main\nmain()\n")
    script.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LINE": "brats-train model=unet loss=lesion"}
    done = subprocess.run(["bash", "-c", COMPLETE], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "loss=lesion_ce loss=lesion_focal\n", done.stderr
    assert "-F hydra_bash_completion brats-train" in done.stderr
