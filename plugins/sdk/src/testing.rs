//! Running a plugin natively.
