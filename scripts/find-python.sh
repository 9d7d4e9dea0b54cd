#!/bin/sh
# Prints the path of a Python that can run this project, or says why there is none and what to install.
# An executable named python3.13 may be a version manager's shim that fails, so each candidate is run.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."

# In order of preference; every locked library has wheels for these.
versions="3.13 3.14 3.12"
minimum=$(sed -n 's/^requires-python *= *">=\([0-9.]*\).*/\1/p' pyproject.toml)

# Written so that Python 2 can run it too. A virtual environment answers with the Python that it was made from.
probe='
import sys, sysconfig

def refuse(reason):
    print(reason)
    sys.exit(1)

if sys.version_info[:2] < tuple(int(part) for part in sys.argv[1].split(".")):
    refuse("is Python %d.%d" % sys.version_info[:2])
if sys.argv[2:] and "%d.%d" % sys.version_info[:2] not in sys.argv[2:]:
    refuse("is Python %d.%d, for which not all libraries have wheels yet" % sys.version_info[:2])
if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
    refuse("is not a standard build of CPython")
if sys.version_info.releaselevel != "final":
    refuse("is a pre-release")
try:
    import ensurepip, ssl, venv
except ImportError as error:
    refuse("lacks %s (on Debian and Ubuntu: the package python%d.%d-venv)" % ((error.name,) + sys.version_info[:2]))
print(getattr(sys, "_base_executable", None) or sys.executable)
'

# try FILE [VERSION...]: prints its real path, or the reason why it is refused and returns 1.
try() {
    file=$1
    shift
    if answer=$("$file" -E -c "$probe" "$minimum" "$@" 2>/dev/null </dev/null); then
        printf '%s\n' "$answer"
    else
        printf '%s\n' "${answer:-"does not run"}"
        return 1
    fi
}

in_path() {
    rest=$PATH:
    while [ -n "$rest" ]; do
        printf '%s\n' "${rest%%:*}/$1"
        rest=${rest#*:}
    done
}

# Folders of version managers and installers, which need not be on PATH. A pattern without a match stays as it is.
in_known_folders() {
    data=${XDG_DATA_HOME:-$HOME/.local/share}
    for folder in \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1"* \
        "${UV_PYTHON_INSTALL_DIR:-$data/uv/python}"/cpython-"$1"* \
        "${ASDF_DATA_DIR:-$HOME/.asdf}"/installs/python/"$1"* \
        "${MISE_DATA_DIR:-$data/mise}"/installs/python/"$1"* \
        "$HOME"/.local "$HOME"/*conda* "$HOME"/*conda*/envs/* "$HOME"/*forge* "$HOME"/*forge*/envs/* \
        /usr /usr/local /opt/local /opt/homebrew /usr/local/opt/python@"$1" /opt/homebrew/opt/python@"$1" \
        /home/linuxbrew/.linuxbrew /Library/Frameworks/Python.framework/Versions/"$1" \
        /opt/* /opt/*/envs/* /opt/python/*"$1"* /opt/*/Python/"$1"*/*; do
        printf '%s\n' "$folder/bin/python$1"
    done
}

candidates() {
    for version in $versions; do
        in_path "python$version"
        in_known_folders "$version"
    done
    in_path python3
    in_path python
}

if [ -n "${PYTHON:-}" ]; then
    file=$(command -v -- "$PYTHON") || file=$PYTHON
    if answer=$(try "$file"); then
        printf '%s\n' "$answer"
        exit 0
    fi
    echo "PYTHON=$PYTHON cannot be used: it $answer. Name a Python $minimum or newer, or leave PYTHON out." >&2
    exit 1
fi

HOME=${HOME:-/nonexistent}
refused=
while IFS= read -r file; do
    [ -f "$file" ] && [ -x "$file" ] || continue
    # The list of versions must be split.
    # shellcheck disable=SC2086
    if answer=$(try "$file" $versions); then
        printf '%s\n' "$answer"
        exit 0
    fi
    refused="$refused
  $file $answer"
done <<EOF
$(candidates)
EOF

cat >&2 <<EOF
This project needs Python $minimum or newer, and none that runs was found. Looked at:${refused:-"
  (no Python at all)"}
Install one, then run make again:
  Debian 13, Ubuntu 24.04   apt-get install python3 python3-venv
  macOS                     brew install python@3.13
  anywhere, without root    pyenv install 3.13, or uv python install 3.13 (https://docs.astral.sh/uv)
A Python in an unusual place can be named: make PYTHON=/path/to/python3.13
EOF
exit 1
