//! Where instances lie: slots of address space, reserved once for all plugins of the process. An instance takes a slot for each of
//! its memories and tables, and gives them back wiped; so starting one maps nothing, and ending one unmaps nothing, for which
//! every thread of the process would have to wait. A slot that nobody uses takes no memory, only addresses.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, Mul};

use wasmtime::{Config, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::memory::{MEMORIES_DECLARED_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX};

/// What wasmtime keeps of one instance beside its memories and tables, bytes: its functions, globals and handles. An interpreter
/// has some hundred thousand.
const INSTANCE_MAX: usize = 64 << 20;
/// Warm slots that are left to the plugin that had them before another gets them.
const WARM_MAX: u32 = 100;

/// Slots that there are, or that are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    /// For linear memories, each of 4 GiB of addresses.
    pub memories: u32,
    /// For tables, each of 2 MiB of addresses.
    pub tables: u32,
}

impl Slots {
    /// None.
    pub const NONE: Self = Self { memories: 0, tables: 0 };
    /// More than a process has threads for: 32 of the 128 TiB that a process can address.
    pub const USUAL: Self = Self { memories: 8_192, tables: 16_384 };

    /// Why these are not enough for a configuration that needs `needed`, if so: while a reload takes it up, its instances and those
    /// before them are there side by side.
    pub fn refuse(self, needed: Self) -> Option<String> {
        let half = Self { memories: self.memories / 2, tables: self.tables / 2 };
        (needed.memories > half.memories || needed.tables > half.tables).then(|| {
            format!(
                "the plugins' instances, one for each step of each worker, need {needed}; a process has room for {half}, and as many \
                 while it reloads: have fewer `workers`, or share the routes out among several processes"
            )
        })
    }

    /// Makes instances lie in these.
    pub(super) fn reserve(self, config: &mut Config) {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_memories(self.memories)
            .total_tables(self.tables)
            // These reserve nothing: what there is of them is bounded by the slots, and by what `memory` and `scan` let a plugin have.
            .total_core_instances(u32::MAX)
            .total_component_instances(u32::MAX)
            .max_core_instance_size(INSTANCE_MAX)
            .max_component_instance_size(INSTANCE_MAX)
            .max_memories_per_module(MEMORIES_DECLARED_MAX)
            .max_tables_per_module(TABLES_MAX as u32)
            .table_elements(TABLE_ELEMENTS_MAX)
            // A slot that is given back keeps no page, and at once: what many instances have taken once is not held for ever.
            .linear_memory_keep_resident(0)
            .table_keep_resident(0)
            .decommit_batch_size(1)
            .max_unused_warm_slots(WARM_MAX);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    }
}

impl Add for Slots {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self { memories: self.memories.saturating_add(more.memories), tables: self.tables.saturating_add(more.tables) }
    }
}

impl Mul<u32> for Slots {
    type Output = Self;

    fn mul(self, times: u32) -> Self {
        Self { memories: self.memories.saturating_mul(times), tables: self.tables.saturating_mul(times) }
    }
}

impl Sum for Slots {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::NONE, Add::add)
    }
}

impl fmt::Display for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} memories and {} tables", self.memories, self.tables)
    }
}
