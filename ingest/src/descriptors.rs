//! Open files and connections share one limit. Connections never get so much of it that running uploads, records and
//! copies have none: those that are too many wait to be accepted. Spec: faults.md 15; core.md §9, `MAX_CONNECTIONS`.

use std::io;

/// What one connection can hold: its socket, and the file of the upload that it writes.
const PER_CONNECTION: u64 = 2;
/// Descriptors that no connection holds: the records, copies at work, files that are looked at, logs.
const OTHERS: u64 = 1024;
/// The least of these with which a process works: idle it has half as many open.
const LEAST_OTHERS: u64 = 128;

/// Raises the limit of open files for `wanted` connections, and answers how many it is good for.
pub(crate) fn connections(wanted: usize) -> usize {
    let wish = u64::try_from(wanted)
        .unwrap_or(u64::MAX)
        .saturating_mul(PER_CONNECTION)
        .saturating_add(OTHERS);
    let limit = rlimit::increase_nofile_limit(wish).or_else(|error| {
        tracing::warn!(%error, "the limit of open files could not be raised");
        present_limit()
    });
    let limit = match limit {
        Ok(limit) => limit,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files is not known");
            return wanted;
        }
    };
    let allowed = within(limit).min(wanted);
    if allowed < wanted {
        tracing::warn!(
            limit,
            allowed,
            MAX_CONNECTIONS = wanted,
            "the limit of open files is too low for MAX_CONNECTIONS: fewer are accepted at once"
        );
    }
    allowed
}

fn present_limit() -> io::Result<u64> {
    rlimit::getrlimit(rlimit::Resource::NOFILE).map(|(soft, _)| soft)
}

/// Connections for which `limit` is enough. Where it is low a quarter is left for the rest, and where it is very low
/// half of it.
fn within(limit: u64) -> usize {
    let others = OTHERS.min((limit / 4).max(LEAST_OTHERS.min(limit / 2)));
    let connections = limit.saturating_sub(others) / PER_CONNECTION;
    usize::try_from(connections).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_everything_else() {
        assert_eq!(within(1_048_576), 523_776);
        assert_eq!(within(41_024), 20_000, "the default of MAX_CONNECTIONS");
        assert_eq!(within(1024), 384);
        assert_eq!(within(512), 192);
        assert_eq!(within(256), 64);
        assert_eq!(within(200), 50);
        assert_eq!(within(1), 1);
    }
}
