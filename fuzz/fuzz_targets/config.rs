//! Whatever an operator writes is understood, or told what is wrong with it.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Err(problems) = millrace::config::understand_text(text) {
        problems.render(true);
    }
});
