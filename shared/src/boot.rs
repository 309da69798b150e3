//! Which start of the machine this is: what its kernel holds and has not written to the disk lasts no longer.
//! Spec: core.md §3, "after a crash without power loss".

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One start of one machine. Bytes that were handed to its kernel are there for as long as it runs; in any other
/// start, of whatever machine, only what was synced is known to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootId(String);

impl BootId {
    /// The start that this process runs in. Containers see that of their machine. Where a machine does not tell its
    /// starts apart they count as one: then a kill loses nothing, and a loss of power is not noticed.
    #[must_use]
    pub fn present() -> Self {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        Self(id.map_or_else(|_| "unknown".to_owned(), |id| id.trim().to_owned()))
    }

    /// A start that is none other.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_machine_is_in_one_start_until_it_is_started_again() {
        assert_eq!(BootId::present(), BootId::present());
        assert_ne!(BootId::present(), BootId::random());
    }
}
