//! What is measured: the rows of the table, what is sent in each, and who is compared with whom.

use clap::ValueEnum;

use crate::null::Kind;

pub(crate) const KIB: u64 = 1024;
pub(crate) const MIB: u64 = 1024 * KIB;
pub(crate) const GIB: u64 = 1024 * MIB;

/// Senders at once, where there are several.
const CONNECTIONS: usize = 16;
/// Small uploads in a round.
const SMALL_UPLOADS: usize = 20_000;

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    /// 1 GiB in one PATCH
    OneLarge,
    /// 16 uploads of 64 MiB at once, each in one PATCH
    ManyLarge,
    /// 4 KiB by POST and PATCH, on 16 connections
    PostPatch,
    /// 4 KiB by creation-with-upload, on 16 connections
    CreateWith,
    /// 1 GiB, until both targets have it
    DeliverOne,
    /// 16 × 64 MiB at once, until both targets have all
    DeliverMany,
}

/// How an upload is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sending {
    /// POST, then everything in one PATCH.
    PostThenPatch,
    /// Everything in the POST.
    CreationWithUpload,
}

/// What is sent in one round of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) connections: usize,
    pub(crate) uploads: usize,
    /// Of each upload.
    pub(crate) size_bytes: u64,
    pub(crate) sending: Sending,
    /// Whether an upload counts only when every target has it.
    pub(crate) until_delivered: bool,
}

/// A server under measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Competitor {
    /// A do-nothing server of ours: a ceiling.
    Null(Kind),
    /// `ingest` with `DURABILITY=none`.
    IngestNone,
    /// `ingest` with `DURABILITY=finish`.
    IngestFinish,
    /// `ferry up` as it is without settings.
    FerryUp,
}

impl Row {
    /// What a round sends, everything divided by `shrink`.
    pub(crate) fn workload(self, shrink: u32) -> Workload {
        let large = |uploads: usize, until_delivered| Workload {
            connections: uploads,
            uploads,
            size_bytes: (GIB / uploads as u64 / u64::from(shrink)).max(1),
            sending: Sending::PostThenPatch,
            until_delivered,
        };
        let small = |sending| Workload {
            connections: CONNECTIONS,
            uploads: (SMALL_UPLOADS / shrink as usize).max(CONNECTIONS),
            size_bytes: 4 * KIB,
            sending,
            until_delivered: false,
        };
        match self {
            Self::OneLarge => large(1, false),
            Self::ManyLarge => large(CONNECTIONS, false),
            Self::PostPatch => small(Sending::PostThenPatch),
            Self::CreateWith => small(Sending::CreationWithUpload),
            Self::DeliverOne => large(1, true),
            Self::DeliverMany => large(CONNECTIONS, true),
        }
    }

    /// Whether it is uploads that are counted, and not bytes.
    pub(crate) fn is_small(self) -> bool {
        matches!(self, Self::PostPatch | Self::CreateWith)
    }

    /// Who takes part, ceilings first.
    pub(crate) fn competitors(self) -> &'static [Competitor] {
        match self {
            Self::OneLarge | Self::ManyLarge | Self::PostPatch | Self::CreateWith => &[
                Competitor::Null(Kind::Discarding),
                Competitor::Null(Kind::Writing),
                Competitor::Null(Kind::Syncing),
                Competitor::IngestNone,
                Competitor::IngestFinish,
            ],
            Self::DeliverOne | Self::DeliverMany => &[Competitor::Null(Kind::Delivering), Competitor::FerryUp],
        }
    }
}

impl Competitor {
    /// In the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Null(Kind::Discarding) => "null: discarding",
            Self::Null(Kind::Writing) => "null: writing",
            Self::Null(Kind::Syncing) => "null: writing, syncing",
            Self::Null(Kind::Delivering) => "null: writing, syncing, copying twice",
            Self::IngestNone => "ingest, DURABILITY=none",
            Self::IngestFinish => "ingest, DURABILITY=finish",
            Self::FerryUp => "ferry up",
        }
    }

    /// What it is compared with: the server that promises the same and does nothing else.
    pub(crate) fn ceiling(self) -> Option<Self> {
        match self {
            Self::Null(_) => None,
            Self::IngestNone => Some(Self::Null(Kind::Writing)),
            Self::IngestFinish => Some(Self::Null(Kind::Syncing)),
            Self::FerryUp => Some(Self::Null(Kind::Delivering)),
        }
    }

    /// Folders, below the one that it was given, in which it has every upload when it has answered.
    pub(crate) fn folders(self) -> &'static [&'static str] {
        match self {
            Self::Null(Kind::Discarding) => &[],
            Self::Null(Kind::Writing | Kind::Syncing) | Self::IngestNone | Self::IngestFinish => &["raw"],
            Self::Null(Kind::Delivering) | Self::FerryUp => &["raw", "dex", "edav"],
        }
    }
}

impl Workload {
    /// The same in words.
    pub(crate) fn title(&self) -> String {
        let (uploads, size) = (self.uploads, Bytes(self.size_bytes));
        let what = match (self.sending, uploads) {
            (Sending::PostThenPatch, 1) => format!("{size} in one PATCH"),
            (Sending::PostThenPatch, _) if uploads == self.connections => format!("{uploads} × {size} at once"),
            (Sending::PostThenPatch, _) => format!("{size} POST+PATCH, {} connections", self.connections),
            (Sending::CreationWithUpload, _) => {
                format!("{size} creation-with-upload, {} connections", self.connections)
            }
        };
        if self.until_delivered {
            format!("{what}, delivered")
        } else {
            what
        }
    }

    /// Bytes of all uploads.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.size_bytes * self.uploads as u64
    }
}

/// A size as people write it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes(pub(crate) u64);

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (unit, name) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{} {name}", self.0 / unit);
            }
        }
        write!(f, "{} B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_sends_what_the_table_says() {
        let titles: Vec<String> = Row::value_variants()
            .iter()
            .map(|row| row.workload(1).title())
            .collect();
        assert_eq!(
            titles,
            [
                "1 GiB in one PATCH",
                "16 × 64 MiB at once",
                "4 KiB POST+PATCH, 16 connections",
                "4 KiB creation-with-upload, 16 connections",
                "1 GiB in one PATCH, delivered",
                "16 × 64 MiB at once, delivered",
            ]
        );
        for row in Row::value_variants().iter().filter(|row| !row.is_small()) {
            assert_eq!(row.workload(1).total_bytes(), GIB);
            assert_eq!(row.workload(8).total_bytes(), GIB / 8);
        }
    }

    #[test]
    fn every_ceiling_takes_part_in_its_row() {
        for row in Row::value_variants() {
            for ceiling in row.competitors().iter().filter_map(|one| one.ceiling()) {
                assert!(row.competitors().contains(&ceiling), "{row:?} lacks {}", ceiling.name());
            }
        }
    }
}
