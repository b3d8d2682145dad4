//! `millrace schema`: what may be written, for editors.

use super::Failure;
use crate::config;

pub(super) fn run() -> Result<(), Failure> {
    anstream::println!("{:#}", config::schema());
    Ok(())
}
