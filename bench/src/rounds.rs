//! Rounds: every server in turn, so that a mood of the machine meets all of them; the first round only warms up.

use std::time::Duration;

use crate::failure::Failure;
use crate::load::{self, Payload};
use crate::medium::{Media, Medium};
use crate::plan::{Competitor, GIB, MIB, Row, Workload};
use crate::server::Programs;
use crate::usage::Usage;
use crate::{verify, wait};

/// What is needed to measure anything.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) programs: Programs,
    pub(crate) media: Media,
    pub(crate) payload: Payload,
    /// Those that count.
    pub(crate) rounds: usize,
    pub(crate) shrink: u32,
}

/// One server in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// MiB or uploads in a second.
    pub(crate) rate: f64,
    /// Processor seconds of the server for a GiB or 1,000 uploads.
    pub(crate) cpu: f64,
    /// The same of the load generator.
    pub(crate) sender_cpu: f64,
    /// Of the server.
    pub(crate) peak_rss_mib: f64,
}

/// All rounds of one server.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) server: Competitor,
    pub(crate) samples: Vec<Sample>,
}

impl Bench {
    /// Measures every server of `row` on `medium`.
    ///
    /// # Errors
    /// One of them did not do what it should: there is no result then.
    pub(crate) fn measure(&self, row: Row, medium: Medium) -> Result<Vec<Series>, Failure> {
        let workload = row.workload(self.shrink);
        let mut series: Vec<Series> = row
            .competitors()
            .iter()
            .map(|server| Series {
                server: *server,
                samples: Vec::new(),
            })
            .collect();
        eprintln!("{}, {}", workload.title(), self.media.name(medium, row.is_small())?);
        for round in 0..=self.rounds {
            // Nobody is always first, or always behind the same neighbour's left-overs.
            let servers = series.len();
            for turn in 0..servers {
                let one = &mut series[(turn + round) % servers];
                let sample = self.once(row, medium, &workload, one.server)?;
                let name = one.server.name();
                if round == 0 {
                    eprintln!("  warm-up  {name}: {:.1}", sample.rate);
                } else {
                    eprintln!("  {round}/{}  {name}: {:.1}", self.rounds, sample.rate);
                    one.samples.push(sample);
                }
            }
        }
        Ok(series)
    }

    fn once(&self, row: Row, medium: Medium, workload: &Workload, server: Competitor) -> Result<Sample, Failure> {
        wait::go_on()?;
        let ground = self.media.ground(medium, workload, row.is_small())?;
        let running = self.programs.start(server, ground.path())?;
        let measured = || {
            let mut connections = load::connect(running.addr(), workload)?;
            let before = (running.usage()?, Usage::own()?);
            let done = load::run(&mut connections, workload, &self.payload)?;
            let after = (running.usage()?, Usage::own()?);
            verify::whole(&mut connections, &done.uploads, workload)?;
            verify::stored(ground.path(), server, workload, &self.payload)?;
            Ok(sample(row, workload, done.elapsed, before, after))
        };
        measured().map_err(|failure| match failure {
            Failure::Interrupted => failure,
            failure => Failure::Measured {
                server: server.name(),
                log: running.last_lines(),
                source: Box::new(failure),
            },
        })
    }
}

fn sample(row: Row, workload: &Workload, elapsed: Duration, before: (Usage, Usage), after: (Usage, Usage)) -> Sample {
    let (units, per) = if row.is_small() {
        (workload.uploads as f64, workload.uploads as f64 / 1000.0)
    } else {
        let bytes = workload.total_bytes() as f64;
        (bytes / MIB as f64, bytes / GIB as f64)
    };
    let cpu = |before: Usage, after: Usage| (after.cpu.saturating_sub(before.cpu)).as_secs_f64() / per;
    Sample {
        rate: units / elapsed.as_secs_f64(),
        cpu: cpu(before.0, after.0),
        sender_cpu: cpu(before.1, after.1),
        peak_rss_mib: after.0.peak_rss_bytes as f64 / MIB as f64,
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "these values have exact forms")]
mod tests {
    use super::*;

    fn usage(cpu_ms: u64, peak_rss_bytes: u64) -> Usage {
        Usage {
            cpu: Duration::from_millis(cpu_ms),
            peak_rss_bytes,
        }
    }

    #[test]
    fn a_sample_counts_bytes_of_large_uploads_and_the_number_of_small_ones() {
        let (before, after) = ((usage(100, MIB), usage(0, 0)), (usage(600, 16 * MIB), usage(250, 0)));
        let of = |row: Row| sample(row, &row.workload(2), Duration::from_secs(2), before, after);
        let large = of(Row::OneLarge); // 512 MiB
        assert_eq!((large.rate, large.cpu, large.sender_cpu), (256.0, 1.0, 0.5));
        assert_eq!(large.peak_rss_mib, 16.0);
        let small = of(Row::CreateWith); // 10,000
        assert_eq!((small.rate, small.cpu, small.sender_cpu), (5000.0, 0.05, 0.025));
    }
}
