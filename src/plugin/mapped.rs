//! Machine code that we compiled ourselves, mapped from a file. A place of the crate with `unsafe`.
#![expect(unsafe_code, reason = "wasmtime cannot check machine code; the cache does")]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use wasmtime::Engine;
use wasmtime::component::Component;

/// Maps an open file whose content the cache has found to be its own, or that our own compiler has just written.
pub(super) fn component(engine: &Engine, file: &File) -> wasmtime::Result<Component> {
    // SAFETY: the content is what `Engine::precompile_component` gave for these very settings. A file in memory has no name, and
    // the compiler that wrote it has ended. A file of the cache lies in a directory that only this user can write, is only this
    // user's to write itself, and its content has the digest that was taken when it was written; it is never changed in place,
    // only renamed over or removed. So the mapping stays what was checked.
    unsafe { Component::deserialize_file(engine, path_of(file)) }
}

/// A name for an open file, whatever the path that it was opened by stands for now.
pub(super) fn path_of(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}
