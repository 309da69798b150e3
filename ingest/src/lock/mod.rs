//! One writer per upload. In one process that is [`memory`]; between processes the store's own lock or the record's
//! claim counts (core.md §3), until a lock service is asked.

mod memory;

pub(crate) use memory::{Live, Place, Writing};
