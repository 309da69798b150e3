//! What a process has used, from `/proc`.

use std::fs;
use std::time::Duration;

use crate::failure::Failure;

/// Processor time and memory of one process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// In user space and in the kernel, of all threads, those that ended included. Counted in ticks of the clock, most
    /// often 10 ms.
    pub(crate) cpu: Duration,
    /// The most memory that was resident at once.
    pub(crate) peak_rss_bytes: u64,
}

impl Usage {
    /// Of the process `pid`, as it stands now.
    ///
    /// # Errors
    /// The process has ended, or `/proc` is not Linux's.
    pub(crate) fn of(pid: u32) -> Result<Self, Failure> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).map_err(Failure::io("read", path))
        };
        let (stat, status) = (read("stat")?, read("status")?);
        let ticks = cpu_ticks(&stat).ok_or_else(|| unknown(pid, "no processor times in its stat"))?;
        let peak_kib = peak_rss_kib(&status).ok_or_else(|| unknown(pid, "no VmHWM in its status: it has ended"))?;
        let per_second = rustix::param::clock_ticks_per_second();
        Ok(Self {
            cpu: Duration::from_secs(ticks) / u32::try_from(per_second).unwrap_or(u32::MAX),
            peak_rss_bytes: peak_kib * 1024,
        })
    }

    /// Of this process.
    ///
    /// # Errors
    /// As [`Usage::of`].
    pub(crate) fn own() -> Result<Self, Failure> {
        Self::of(std::process::id())
    }
}

fn unknown(pid: u32, reason: &str) -> Failure {
    Failure::Program {
        program: format!("process {pid}"),
        reason: reason.to_owned(),
    }
}

/// Fields 14 and 15. The name, field 2, may hold spaces and parentheses: fields are counted behind it.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

fn peak_rss_kib(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    value.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_shifts_nothing() {
        let stat = "17 (a) b (c) S 1 17 17 0 -1 4194560 1 0 0 0 250 31 7 9 20 0 3 0 99 1 1";
        assert_eq!(cpu_ticks(stat), Some(281));
    }

    #[test]
    fn the_peak_is_found_in_kib() {
        assert_eq!(
            peak_rss_kib("Name:\tx\nVmHWM:\t    1234 kB\nVmRSS:\t 7 kB\n"),
            Some(1234)
        );
        assert_eq!(peak_rss_kib("Name:\tx\nState:\tZ (zombie)\n"), None);
    }
}
