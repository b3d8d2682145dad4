//! The capability `random`: randomness of the operating system, fit for keys.

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use wasmtime::StoreContextMut;
use wasmtime::component::LinkerInstance;

use crate::plugin::fault::HostFault;
use crate::plugin::sandbox::State;

/// The most bytes of one call.
const BYTES_MAX: u32 = 64 << 10;

pub(in crate::plugin) fn define(random: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    random.func_wrap("get-bytes", |cx: StoreContextMut<'_, State>, (count,): (u32,)| {
        cx.data().look_at_deadline()?;
        if count > BYTES_MAX {
            return Err(HostFault::trapped(format!(
                "it asked for {count} random bytes at once, of at most {BYTES_MAX}"
            ))
            .into());
        }
        let mut bytes = vec![0; count as usize];
        fill(&mut bytes)?;
        Ok((bytes,))
    })?;
    random.func_wrap("get-u64", |cx: StoreContextMut<'_, State>, ()| {
        cx.data().look_at_deadline()?;
        let mut bytes = [0; 8];
        fill(&mut bytes)?;
        Ok((u64::from_le_bytes(bytes),))
    })
}

fn fill(mut bytes: &mut [u8]) -> Result<(), HostFault> {
    while !bytes.is_empty() {
        match getrandom(&mut *bytes, GetRandomFlags::empty()) {
            Ok(got) => bytes = &mut bytes[got..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(HostFault::trapped(format!("the system gave no random bytes: {error}"))),
        }
    }
    Ok(())
}
