//! What senders were told, and what must be there because of it.

use shared::config::Durability;
use tests::client::Answer;
use tests::forgetful::Machine;
use tests::pattern::assert_same;
use tests::site::TARGETS;

/// One upload and what its sender knows.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its id.
    pub(super) id: String,
    /// All that will be sent.
    pub(super) content: Vec<u8>,
    /// The offset told last.
    pub(super) told: u64,
    /// Targets that `/info` called a success.
    pub(super) delivered: Vec<String>,
    /// The server said that it is gone; nothing more is asked of it.
    pub(super) gone: bool,
    /// The power was lost since it was told last: not every start lives to be asked for every upload.
    pub(super) power_lost: bool,
}

impl Entry {
    /// Its length.
    pub(super) fn len(&self) -> u64 {
        u64::try_from(self.content.len()).expect("a length in memory")
    }

    /// Its sender takes it for finished.
    pub(super) fn is_whole(&self) -> bool {
        self.told == self.len()
    }
}

/// What is known of the starts before this one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before {
    pub(super) durability: Durability,
    pub(super) sync_failed: bool,
}

impl Before {
    /// Compares what HEAD answers after a crash with what was told before it. Core.md §3, the table.
    ///
    /// # Panics
    /// A promise is broken.
    pub(super) fn check(self, entry: &mut Entry, head: &Answer) {
        let what = || {
            let (lost, told) = (entry.power_lost, entry.told);
            format!("{self:?}, power lost: {lost}, {told} of {}: {head:?}", entry.len())
        };
        let may_go_back = match (entry.power_lost, self.durability) {
            (false, _) | (true, Durability::Patch) => false,
            (true, Durability::Finish) => !entry.is_whole(),
            (true, Durability::None) => true,
        };
        match head.status {
            200 => {
                let told = head.number("Upload-Offset").expect("a 200 tells the offset");
                // A failed sync sends back to what can be proved.
                let may_go_back = may_go_back || (self.sync_failed && !entry.is_whole());
                assert!(
                    told >= entry.told || may_go_back,
                    "an offset went back to {told}; {}",
                    what()
                );
                assert!(told <= entry.len(), "{}", what());
                entry.told = told;
                entry.power_lost = false;
            }
            // Its creation was not durable.
            404 => {
                assert!(may_go_back, "{}", what());
                entry.gone = true;
            }
            410 => {
                assert!(may_go_back || (self.sync_failed && !entry.is_whole()), "{}", what());
                entry.gone = true;
            }
            _ => panic!("neither there nor gone; {}", what()),
        }
    }
}

/// Whatever bears a final name in a target is whole and right, and what was called delivered is there. In raw the same
/// holds wherever something is synced at all.
///
/// # Panics
/// It is not.
pub(super) fn assert_whole_where_visible(machine: &Machine, book: &[Entry], durability: Durability) {
    for target in TARGETS {
        let visible = machine.visible(target);
        for (name, bytes) in &visible {
            let entry = book.iter().find(|entry| name.contains(&entry.id));
            // An upload whose 201 never came is nobody's, and has no content that is known here.
            if let Some(entry) = entry {
                assert_same(&format!("{name} in {target}"), bytes, &entry.content);
            }
        }
        for entry in book
            .iter()
            .filter(|entry| entry.delivered.iter().any(|name| name == target))
        {
            assert!(
                visible.keys().any(|name| name.contains(&entry.id)),
                "{} was reported as delivered to {target} and is not there",
                entry.id
            );
        }
    }
    if durability != Durability::None {
        for (name, bytes) in machine.visible("raw") {
            if let Some(entry) = book.iter().find(|entry| entry.id == name) {
                assert_same(&format!("{name} in raw"), &bytes, &entry.content);
            }
        }
    }
}
