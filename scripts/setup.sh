#!/bin/sh
# Makes the project's environment: .venv with what uv.lock names, installed by a uv that lives in .tools.
# Writes inside of the project's folder only, and does nothing where .venv is up to date.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV

uv_version=0.13.9
stamp=.venv/.setup
inputs=$(cat pyproject.toml uv.lock scripts/setup.sh | cksum)

runs() { [ -x "$1" ] && "$1" -c '' 2>/dev/null; }

# Scripts in an environment hold its absolute path, so one that was moved is made anew.
if [ -f "$stamp" ] && [ "$(sed -n 1p "$stamp")" != "$PWD" ]; then
    rm -rf .venv
fi
if [ -z "${PYTHON:-}" ] && [ -f "$stamp" ] && [ "$(sed -n 2p "$stamp")" = "$inputs" ] && runs .venv/bin/python; then
    exit 0
fi

# Keep the Python of an environment that is there, unless another one was asked for.
if [ -n "${PYTHON:-}" ] || ! python=$(PYTHON=.venv/bin/python sh scripts/find-python.sh 2>/dev/null); then
    python=$(sh scripts/find-python.sh)
fi
echo "Setting up .venv with $python (some 800 MB; the first time takes a minute or two)"

uv=.tools/uv/bin/uv
case "$("$uv" --version 2>/dev/null || true)" in
    "uv $uv_version"*) ;;
    *)
        rm -rf .tools/uv
        "$python" -m venv .tools/uv
        PIP_USER=0 .tools/uv/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check "uv==$uv_version"
        ;;
esac

export UV_CACHE_DIR="${UV_CACHE_DIR:-$PWD/.tools/cache}" UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=.venv
if ! "$uv" sync --frozen --extra dev --python "$python"; then
    echo "Set-up failed. Behind a proxy or an inspecting firewall, see docs/contributing.md." >&2
    exit 1
fi
printf '%s\n' "$PWD" "$inputs" >"$stamp"
