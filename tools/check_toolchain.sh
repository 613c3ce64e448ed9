#!/usr/bin/env bash
# Names what is missing to build PageONE, and where to get it; silent when all is there.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
faults=0

missing() {
    faults=$((faults + 1))
    printf 'pageone: %s\n         %s\n' "$1" "$2" >&2
}

# older A B: whether version A comes before version B
older() { [ "$1" != "$2" ] && [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

[ "$(uname -s)" = Linux ] || missing "this is $(uname -s)" "PageONE works on Linux (kernel 6.7 or newer for merging)"

wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
rust_help="install Rust $wanted or newer: https://rustup.rs (Debian 12's own rustc is older)"
for tool in cargo rustc; do
    if ! command -v "$tool" >/dev/null 2>&1; then
        missing "$tool was not found" "$rust_help"
    else
        found=$("$tool" --version 2>/dev/null | awk '{print $2}')
        if [ -z "$found" ]; then
            missing "$tool does not run" "$rust_help"
        elif older "${found%%-*}" "$wanted"; then
            missing "$tool is $found, older than $wanted" "$rust_help"
        fi
    fi
done
if command -v cargo >/dev/null 2>&1; then
    cargo fmt --version >/dev/null 2>&1 || missing "rustfmt was not found" "rustup component add rustfmt (Debian: apt install rustfmt)"
    cargo clippy --version >/dev/null 2>&1 || missing "clippy was not found" "rustup component add clippy (Debian: apt install rust-clippy)"
fi

command -v cc >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 ||
    missing "no C compiler (Rust links with it)" "Debian: apt install gcc libc6-dev"

if ! command -v "$python" >/dev/null 2>&1; then
    missing "$python was not found" "Debian: apt install python3 python3-venv"
else
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        missing "$python is $("$python" -c 'import platform; print(platform.python_version())' 2>&1 | tail -n 1), older than 3.10" \
            "name a newer one: make PYTHON=/path/to/python3.11"
    elif ! "$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then
        missing "$python cannot make virtual environments (venv or ensurepip is missing)" "Debian: apt install python3-venv"
    fi
fi

[ "$faults" -eq 0 ]
