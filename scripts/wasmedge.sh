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
    for prefix in ${WASMEDGE_DIR:+"$WASMEDGE_DIR"} /usr/local /usr "$HOME/.wasmedge"; do
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

# Exports what the build of kiln-wasmedge reads, after wasmedge_find. The folder
# handed to the linker holds libwasmedge alone: beside it there may be a libc
# that is not the host's.
wasmedge_exports() {
    export WASMEDGE_INCLUDE_DIR WASMEDGE_LIB_DIR=$wasmedge_cache/link
    mkdir -p "$WASMEDGE_LIB_DIR"
    ln -sfn "$WASMEDGE_LIBRARY" "$WASMEDGE_LIB_DIR/libwasmedge.so"
}
