//! The ceiling of one instance's memory. wasmtime asks before anything of a store grows.

use std::fmt;

use wasmtime::ResourceLimiter;

use super::fault::size;

/// Elements of all tables of an instance; a JavaScript or Python engine needs some ten thousand.
pub(super) const TABLE_ELEMENTS_MAX: usize = 1 << 18;
/// Core modules of one component; a Python plugin is made of some dozens.
const INSTANCES_MAX: usize = 1_000;
pub(super) const TABLES_MAX: usize = 1_000;
/// Each reserves address space, whatever its size.
const MEMORIES_MAX: usize = 16;
/// Memories that a plugin's file may speak of.
pub(super) const MEMORIES_DECLARED_MAX: u32 = 256;

/// What a guest was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Linear memory beyond this ceiling.
    Memory(usize),
    /// Elements of tables.
    TableElements,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(limit) => {
                let limit = size(*limit as u64);
                write!(f, "it asked for more than its {limit} of memory: raise the plugin's `memory`")
            }
            Self::TableElements => {
                write!(
                    f,
                    "it asked for more than {TABLE_ELEMENTS_MAX} elements in its tables, which no plugin may have"
                )
            }
        }
    }
}

/// Bounds the linear memory of a store, and remembers that it refused: the guest's allocator usually answers a refusal
/// with a trap that says nothing of memory.
#[derive(Debug)]
pub(super) struct MemoryLimiter {
    limit: usize,
    used: usize,
    table_elements: usize,
    refused: Option<Refused>,
}

impl MemoryLimiter {
    pub(super) fn new(limit: u64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self { limit, used: 0, table_elements: 0, refused: None }
    }

    /// Linear memory of all the store's memories, bytes.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// What was refused since this was last asked.
    pub(super) fn take_refused(&mut self) -> Option<Refused> {
        self.refused.take()
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            // Will fail by the memory's own declaration: nothing to account for.
            return Ok(true);
        }
        let used = self.used.saturating_add(desired.saturating_sub(current));
        let allowed = used <= self.limit;
        if allowed {
            self.used = used;
        } else {
            self.refused = Some(Refused::Memory(self.limit));
        }
        Ok(allowed)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.refused = Some(Refused::Memory(self.limit));
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        let allowed = self.table_elements.checked_add(more).is_some_and(|elements| elements <= TABLE_ELEMENTS_MAX);
        if allowed {
            self.table_elements += more;
        } else {
            self.refused = Some(Refused::TableElements);
        }
        Ok(allowed)
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_covers_all_memories_together_and_a_refusal_is_remembered_once() {
        let mut limiter = MemoryLimiter::new(3 << 16);
        assert!(limiter.memory_growing(0, 2 << 16, None).unwrap());
        assert!(limiter.memory_growing(0, 1 << 16, None).unwrap());
        assert_eq!(limiter.take_refused(), None);
        assert!(!limiter.memory_growing(1 << 16, 2 << 16, None).unwrap());
        assert_eq!(limiter.used(), 3 << 16);
        assert_eq!(limiter.take_refused(), Some(Refused::Memory(3 << 16)));
        assert_eq!(limiter.take_refused(), None);
        assert!(!limiter.table_growing(0, TABLE_ELEMENTS_MAX + 1, None).unwrap());
        assert_eq!(limiter.take_refused(), Some(Refused::TableElements));
    }
}
