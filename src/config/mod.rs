//! FLOOR 2: YAML to [`Settings`]. `raw` mirrors what may be written, `settings` is what was meant and cannot be wrong.
//! Every problem of every file is reported at once. Only this module names a YAML library.

pub mod settings;

pub use settings::Settings;
