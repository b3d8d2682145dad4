//! What a guest hands over is a fault, or outputs that are sound.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    millrace::plugin::fuzz::guest_output(bytes);
});
