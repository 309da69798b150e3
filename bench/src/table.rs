//! The result: one Markdown table, and the facts of the machine above it.

use std::fmt::Write as _;
use std::fs;

use crate::plan::Row;
use crate::rounds::{Sample, Series};
use crate::stats::{median, ratio, spread};

const HEADER: [&str; 9] = [
    "load",
    "on",
    "server",
    "rate",
    "of ceiling",
    "CPU",
    "of ceiling",
    "peak RSS",
    "sender's CPU",
];
/// Columns of text; those behind them hold numbers.
const TEXTS: usize = 3;

/// Lines of the table, as they get measured.
#[derive(Debug, Default)]
pub(crate) struct Table {
    lines: Vec<[String; HEADER.len()]>,
}

impl Table {
    /// Adds what was measured of `row` on the medium of that name.
    pub(crate) fn add(&mut self, row: Row, title: &str, medium: &str, series: &[Series]) {
        let (rate_unit, cpu_unit) = if row.is_small() {
            ("/s", "s/1000")
        } else {
            ("MiB/s", "s/GiB")
        };
        for one in series {
            let ceiling = one
                .server
                .ceiling()
                .and_then(|wanted| series.iter().find(|other| other.server == wanted));
            let of_ceiling = |value: fn(&Sample) -> f64| {
                ceiling.map_or_else(String::new, |ceiling| {
                    format!("{:.2}", ratio(&one.all(value), &ceiling.all(value)))
                })
            };
            let middle = |value: fn(&Sample) -> f64| median(&one.all(value));
            self.lines.push([
                title.to_owned(),
                medium.to_owned(),
                one.server.name().to_owned(),
                format!(
                    "{:.0} {rate_unit} ±{:.0} %",
                    middle(|sample| sample.rate),
                    spread(&one.all(|sample| sample.rate)) * 100.0
                ),
                of_ceiling(|sample| sample.rate),
                format!("{:.3} {cpu_unit}", middle(|sample| sample.cpu)),
                of_ceiling(|sample| sample.cpu),
                format!("{:.1} MiB", middle(|sample| sample.peak_rss_mib)),
                format!("{:.3} {cpu_unit}", middle(|sample| sample.sender_cpu)),
            ]);
        }
    }

    /// The table in Markdown, with columns that are straight as text too.
    pub(crate) fn markdown(&self) -> String {
        let header = HEADER.map(str::to_owned);
        let width = |column: usize| {
            let cells = self
                .lines
                .iter()
                .chain([&header])
                .map(|line| line[column].chars().count());
            cells.max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..HEADER.len()).map(width).collect();
        let mut text = String::new();
        let mut line = |cells: &[String]| {
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                let written = if column < TEXTS {
                    write!(text, "| {cell:<width$} ")
                } else {
                    write!(text, "| {cell:>width$} ")
                };
                written.expect("writing to a String does not fail");
            }
            text.push_str("|\n");
        };
        line(&header);
        let rule: Vec<String> = widths
            .iter()
            .enumerate()
            .map(|(column, width)| {
                if column < TEXTS {
                    "-".repeat(*width)
                } else {
                    format!("{}:", "-".repeat(width - 1))
                }
            })
            .collect();
        line(&rule);
        for cells in &self.lines {
            line(cells);
        }
        text
    }
}

impl Series {
    fn all(&self, value: fn(&Sample) -> f64) -> Vec<f64> {
        self.samples.iter().map(value).collect()
    }
}

/// Processor and kernel of this machine, in a few words.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores ({model}), Linux {}", kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::null::Kind;
    use crate::plan::Competitor;

    fn series(server: Competitor, rates: [f64; 3]) -> Series {
        let sample = |rate| Sample {
            rate,
            cpu: 100.0 / rate,
            sender_cpu: 0.25,
            peak_rss_mib: 15.0,
        };
        Series {
            server,
            samples: rates.map(sample).to_vec(),
        }
    }

    #[test]
    fn a_server_is_compared_with_its_ceiling_and_a_ceiling_with_nothing() {
        let mut table = Table::default();
        let series = [
            series(Competitor::Null(Kind::Discarding), [2000.0, 2000.0, 2000.0]),
            series(Competitor::Null(Kind::Writing), [1000.0, 900.0, 1100.0]),
            series(Competitor::IngestNone, [500.0, 450.0, 550.0]),
        ];
        table.add(Row::OneLarge, "1 GiB", "tmpfs", &series);
        let text = table.markdown();
        let cells: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        assert_eq!(cells.len(), 5, "{text}");
        assert_eq!(cells[3][2..6], ["null: writing", "1000 MiB/s ±10 %", "", "0.100 s/GiB"]);
        assert_eq!(cells[4][2..5], ["ingest, DURABILITY=none", "500 MiB/s ±10 %", "0.50"]);
        assert_eq!(cells[4][5..], ["0.200 s/GiB", "2.00", "15.0 MiB", "0.250 s/GiB"]);
        let widths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
    }
}
