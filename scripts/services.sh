#!/bin/sh
# Installs the real services that some tests need into .tools/node: Azurite, Azure's own emulator of its Blob store.
# Needs node and npm. Writes inside of the project's folder only, and does nothing where they are there.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."

azurite_version=3.37.0
folder=.tools/node
installed=$(sed -n 's/^ *"version": *"\(.*\)".*/\1/p' "$folder/node_modules/azurite/package.json" 2>/dev/null || true)
if [ "$installed" = "$azurite_version" ]; then
    exit 0
fi
if ! command -v npm >/dev/null; then
    echo "Azurite needs node and npm: apt-get install nodejs npm, or brew install node" >&2
    exit 1
fi
echo "Installing Azurite $azurite_version into $folder (some 370 MB)"
mkdir -p "$folder"
# It warns that it wants a newer node than Debian 12 has; its Blob service runs on that all the same.
npm install --prefix "$folder" --cache .tools/cache/npm --loglevel error --no-audit --no-fund --ignore-scripts \
    "azurite@$azurite_version"
