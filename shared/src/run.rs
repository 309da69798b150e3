//! How a program of ours begins and ends: configuration, logs, runtime, exit code.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, Command};

use crate::build;
use crate::config::{Config, Defaults, Lookup, environment};
use crate::shutdown;
use crate::telemetry::{self, Chain};

/// Exit code for what cannot be started: nothing was done. Spec: faults.md 17, 77.
const NOT_STARTED: u8 = 2;

/// The longest that the end of a program waits for the collector of its traces.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Why a program could not start.
pub type Failure = Box<dyn Error + Send + Sync>;

/// The whole of a service's `main`: its command line, and then [`program`].
pub fn service<C, F>(name: &'static str, about: &'static str, serve: impl FnOnce(C) -> F) -> ExitCode
where
    C: Config,
    F: Future<Output = Result<(), Failure>>,
{
    let defaults = Defaults::default();
    let matches = Command::new(name)
        .about(about)
        .version(build::version())
        .after_help(format!(
            "Everything is set by the environment:\n\n{}",
            C::help(&defaults)
        ))
        .arg(
            Arg::new("config-check")
                .long("config-check")
                .action(ArgAction::SetTrue)
                .help("Print the effective configuration and exit: 0, or 2 with every problem"),
        )
        .get_matches();
    program(&environment, &defaults, matches.get_flag("config-check"), serve)
}

/// Reads the configuration, or checks it only; starts the log and the runtime; serves until that ends. Exit code 2
/// if it could not start, with every problem on standard error.
pub fn program<C, F>(lookup: Lookup<'_>, defaults: &Defaults, check_only: bool, serve: impl FnOnce(C) -> F) -> ExitCode
where
    C: Config,
    F: Future<Output = Result<(), Failure>>,
{
    if check_only {
        return match C::check(lookup, defaults) {
            Ok(effective) => {
                print!("{effective}");
                ExitCode::SUCCESS
            }
            Err(problems) => refuse(&problems),
        };
    }
    match C::read_to_start(lookup, defaults) {
        Ok(config) => match run(config, serve) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => refuse(&Chain(failure.as_ref())),
        },
        Err(problems) => refuse(&problems),
    }
}

fn run<C, F>(config: C, serve: impl FnOnce(C) -> F) -> Result<(), Failure>
where
    C: Config,
    F: Future<Output = Result<(), Failure>>,
{
    let telemetry = telemetry::init(config.common())?;
    let grace = config.common().shutdown_grace;
    for warning in &config.common().warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(serve(config));
    drop(runtime); // the spans of what it breaks off end here
    telemetry.end(shutdown::left_of(grace).min(LAST_SPANS));
    served
}

fn refuse(reason: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("{reason}");
    ExitCode::from(NOT_STARTED)
}
