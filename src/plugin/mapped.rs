//! Machine code that we compiled ourselves, mapped from a file. The one place of the crate with `unsafe` for it.
#![expect(unsafe_code, reason = "wasmtime cannot check machine code; the cache does")]

use std::fs::File;
use std::os::fd::AsRawFd as _;

use wasmtime::Engine;
use wasmtime::component::Component;

/// Maps an open file whose content the cache has found to be its own.
pub(super) fn component(engine: &Engine, file: &File) -> wasmtime::Result<Component> {
    // (wasmtime opens it by name: this name is the open file itself)
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: the file is one that `Component::serialize` wrote for these very settings: it lies in a directory that only
    // this user can write, is only this user's to write itself, and its content has the digest that was taken when it was
    // written. It is never changed in place, only renamed over or removed, so the mapping stays what was checked.
    unsafe { Component::deserialize_file(engine, path) }
}
