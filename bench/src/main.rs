//! What Ferry costs, beside servers that do as little as can be done: `scripts/bench`.
//!
//! ```text
//!   rounds ──► medium   a fresh folder or file system
//!          ──► server   a fresh process: ingest, ferry up, or a do-nothing server (null)
//!          ──► load     all uploads, every answer checked
//!          ──► verify   every upload is there, every byte right
//!          ──► stats ──► table
//! ```
//!
//! bench/README.md says what is measured and how to read it.

mod failure;
mod load;
mod medium;
mod null;
mod plan;
mod rounds;
mod server;
mod stats;
mod table;
mod usage;
mod verify;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum as _};
use shared::telemetry::Chain;

use failure::Failure;
use load::Payload;
use medium::{Media, Medium};
use plan::{Competitor, Row};
use rounds::Bench;
use server::Programs;
use table::Table;

/// Exit code for what cannot be measured: nothing was started.
const USAGE: u8 = 2;

/// Measures ingest and ferry up beside do-nothing servers, and prints one Markdown table.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    own: Option<Own>,
    #[command(flatten)]
    options: Options,
}

/// What this program starts itself for.
#[derive(Debug, Subcommand)]
enum Own {
    /// A do-nothing server
    #[command(hide = true)]
    Null { kind: null::Kind, folder: PathBuf },
}

#[derive(Debug, Args)]
struct Options {
    /// Rounds that count, after one to warm up [default: 5, with --quick 2]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// A first impression: an eighth of the bytes and uploads
    #[arg(long)]
    quick: bool,
    /// Divide bytes and numbers of uploads [default: 1, with --quick 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    shrink: Option<u32>,
    /// Only this row; may be given several times
    #[arg(long, value_name = "ROW")]
    only: Vec<Row>,
    /// Only on this medium
    #[arg(long, value_name = "MEDIUM")]
    on: Option<Medium>,
    /// Folder in memory; needs room for three times 1 GiB
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    tmpfs: PathBuf,
    /// Folder on a disk; needs room for three times 1 GiB
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    disk: PathBuf,
    /// Folder of the programs to measure [default: this program's]
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// What Ferry logs (RUST_LOG); info is its default
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: String,
    /// Measure also programs with failpoints: for the tests of this program
    #[arg(long, hide = true)]
    any_build: bool,
}

fn main() -> ExitCode {
    if !cfg!(target_os = "linux") {
        eprintln!("bench: measures on Linux only: processor time and memory come from /proc");
        return ExitCode::from(USAGE);
    }
    let cli = Cli::parse();
    let run = match cli.own {
        Some(Own::Null { kind, folder }) => {
            null::run(kind, &folder).map_err(Failure::io("serve from", folder.display()))
        }
        None => measure(&cli.options),
    };
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {}", Chain(&failure));
            match failure {
                Failure::Options(_) => ExitCode::from(USAGE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn measure(options: &Options) -> Result<(), Failure> {
    wait::listen_for_signals()?;
    let rows = match &options.only[..] {
        [] => Row::value_variants(),
        only => only,
    };
    let media = match options.on {
        Some(medium) => vec![medium],
        None => Medium::value_variants().to_vec(),
    };
    let servers: Vec<Competitor> = rows.iter().flat_map(|row| row.competitors()).copied().collect();
    let bench = Bench {
        programs: Programs::find(programs(options)?, &servers, options.log.clone(), options.any_build)?,
        media: Media::find(&options.tmpfs, &options.disk, &media)?,
        payload: Payload::new(),
        rounds: options.rounds.map_or(if options.quick { 2 } else { 5 }, usize::from),
        shrink: options.shrink.unwrap_or(if options.quick { 8 } else { 1 }),
    };
    println!("{}\n", facts(&bench, &servers, &media, &options.log)?);
    let mut table = Table::default();
    for row in rows {
        for medium in &media {
            let series = bench.measure(*row, *medium)?;
            let name = bench.media.name(*medium, row.is_small())?;
            table.add(*row, &row.workload(bench.shrink).title(), &name, &series);
        }
    }
    print!("{}", table.markdown());
    Ok(())
}

/// Where the programs are that are measured.
fn programs(options: &Options) -> Result<PathBuf, Failure> {
    if let Some(folder) = &options.programs {
        return Ok(folder.clone());
    }
    let own = std::env::current_exe().map_err(Failure::io("find", "this program"))?;
    Ok(own.with_file_name(""))
}

/// The line above the table: what was measured where.
fn facts(bench: &Bench, servers: &[Competitor], media: &[Medium], log: &str) -> Result<String, Failure> {
    let mut facts = Vec::new();
    if let Some(program) = servers.iter().find_map(|server| server.program()) {
        facts.push(format!("Ferry: {}", bench.programs.version(program)?));
    }
    facts.push(table::machine());
    for medium in media {
        facts.push(format!(
            "{} at {}",
            bench.media.name(*medium, false)?,
            bench.media.folder(*medium).display()
        ));
    }
    facts.push(format!("RUST_LOG={log}"));
    facts.push(format!(
        "medians of {} interleaved rounds after one to warm up",
        bench.rounds
    ));
    Ok(facts.join("; "))
}
