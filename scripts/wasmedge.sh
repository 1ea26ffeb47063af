# Where WasmEdge is: sourced by setup and build.
#
# wasmedge_find looks for it in the order in which kiln prefers it and sets
#   WASMEDGE_KIND         system | private | none
#   WASMEDGE_INCLUDE_DIR  the folder that holds wasmedge/wasmedge.h
#   WASMEDGE_LIBRARY      libwasmedge.so.0 itself
# The Rust bindings are made from the header, so another minor version will not do.

WASMEDGE_VERSION=0.14

# The private prefix: made by setup, thrown away with `rm -r`.
wasmedge_cache=$repo/.cache/wasmedge

wasmedge_find() {
    local prefix
    WASMEDGE_KIND=none
    for prefix in ${WASMEDGE_DIR:+"$WASMEDGE_DIR"} /usr/local /usr "${HOME:-/root}/.wasmedge"; do
        wasmedge_in "$prefix" && WASMEDGE_KIND=system && return
    done
    wasmedge_in "$wasmedge_cache/root/usr" && WASMEDGE_KIND=private && return
    wasmedge_in "$wasmedge_cache/release" && WASMEDGE_KIND=system
    return 0
}

# Is a WasmEdge that will do installed below PREFIX?
wasmedge_in() {
    local prefix=$1 version=$1/include/wasmedge/version.h library
    grep -qs "define WASMEDGE_VERSION \"$WASMEDGE_VERSION\." "$version" || return 1
    for library in "$prefix"/lib/"$(uname -m)"-linux-gnu/libwasmedge.so.0 \
        "$prefix"/lib64/libwasmedge.so.0 "$prefix"/lib/libwasmedge.so.0; do
        [ -e "$library" ] || continue
        WASMEDGE_INCLUDE_DIR=$prefix/include
        WASMEDGE_LIBRARY=$library
        return 0
    done
    return 1
}

# The dynamic linker that goes with libwasmedge's libc.
wasmedge_loader() {
    local path
    path=$(readelf -l "$(command -v bash)" | sed -n 's/.*interpreter: \(.*\)\]/\1/p')
    if [ "$WASMEDGE_KIND" = private ]; then
        path=$(dirname "$WASMEDGE_LIBRARY")/$(basename "$path")
    fi
    echo "$path"
}

# Exports what cargo needs to build kiln-wasmedge and to run its tests, after
# wasmedge_find. The folder handed to the linker holds libwasmedge alone: beside
# it there may be a libc that is not the host's.
wasmedge_exports() {
    local triple
    export WASMEDGE_INCLUDE_DIR WASMEDGE_LIB_DIR=$wasmedge_cache/link
    mkdir -p "$WASMEDGE_LIB_DIR"
    ln -sfn "$WASMEDGE_LIBRARY" "$WASMEDGE_LIB_DIR/libwasmedge.so"
    triple=$(rustc -vV | sed -n 's/^host: //p' | tr a-z- A-Z_)
    export "CARGO_TARGET_${triple}_RUNNER=$repo/scripts/with-engine"
}
